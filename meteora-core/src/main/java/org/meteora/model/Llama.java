package org.meteora.model;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.Shape;
import java.util.Arrays;
import java.util.List;
import java.util.function.BiFunction;
import java.util.function.UnaryOperator;
import java.util.stream.LongStream;
import java.util.stream.Stream;
import org.meteora.TooLittleMemory;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.RoutingSettings;
import org.meteora.nn.KvBlock;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * A Llama whose every projection is a {@link org.meteora.moe.GatedLinear}; it keeps nothing of a
 * request, so that one model serves many at once. As a DJL block: token ids {@code (batch, seq)}
 * int64 to logits {@code (batch, seq, vocab)}.
 *
 * <p>It owns nothing: its parameters belong to the manager they were made in.
 */
public final class Llama extends LlamaBlock {
  /** Bytes that a pool leaves for prefills, at most; where little is free, half of it. */
  private static final long RESERVE = 3L << 30;

  private final Architecture config;
  private final Dtype dtype;
  private final NDManager manager;
  private final NDArray embedding;
  private final List<DecoderLayer> layers;
  private final RmsNorm norm;
  private final NDArray head;
  private final RotaryEmbedding rotary;
  private final Backend backend;
  private final FrozenWeights frozen;

  /**
   * @param manager owns the parameters and the rotary tables
   * @param embedding {@code (vocab, hidden)}
   * @param head {@code (vocab, hidden)}; the embedding itself when they are tied
   * @param frozen where all weights are that are not trained
   */
  public Llama(
      Architecture config,
      NDManager manager,
      NDArray embedding,
      List<DecoderLayer> layers,
      RmsNorm norm,
      NDArray head,
      RotaryEmbedding rotary,
      Backend backend,
      FrozenWeights frozen) {
    this.config = config;
    this.manager = manager;
    this.dtype = Ops.dtype(embedding);
    this.embedding = embedding;
    this.layers = List.copyOf(layers);
    this.head = head;
    this.rotary = rotary;
    this.backend = backend;
    this.frozen = frozen;
    register("embed_tokens", embedding);
    for (int i = 0; i < layers.size(); i++) {
      addChildBlock("layers." + i, layers.get(i));
    }
    this.norm = addChildBlock("norm", norm);
    if (head != embedding) {
      register("lm_head", head);
    }
  }

  /** Its sizes and shapes. */
  public Architecture config() {
    return config;
  }

  /** The dtype it computes in. */
  public Dtype dtype() {
    return dtype;
  }

  /** The manager of the parameters; its device is the model's. */
  public NDManager manager() {
    return manager;
  }

  /** Its decoder layers, in order. */
  public List<DecoderLayer> layers() {
    return layers;
  }

  /** The linears of all layers, in the order of layers and projections. */
  public Stream<GatedLinear> linears() {
    return layers.stream().flatMap(layer -> layer.projections().stream());
  }

  /** Those of them that have adapters. */
  public Stream<GatedLinear> adapted() {
    return linears().filter(linear -> linear.bank() != null);
  }

  /**
   * Where the weights are; to be asked before computing with a layer, the embedding or the head.
   */
  public FrozenWeights frozen() {
    return frozen;
  }

  /** {@code (vocab, hidden)}. */
  public NDArray embedding() {
    return embedding;
  }

  /** The norm before the head. */
  public RmsNorm norm() {
    return norm;
  }

  /** {@code (vocab, hidden)}. */
  public NDArray head() {
    return head;
  }

  /** What computes it. */
  public Backend backend() {
    return backend;
  }

  /** A cache for rows with these left paddings. */
  public KvCache newCache(NDManager owner, int[] padding, int expected) {
    return new KvCache(config, owner, dtype, padding, expected);
  }

  /**
   * A pool of so many blocks of keys and values.
   *
   * @throws TooLittleMemory when they are not to be had
   */
  public KvCache newPool(NDManager owner, int blocks) {
    return KvCache.pool(config, owner, dtype, blocks);
  }

  /**
   * Blocks of a pool for sequences: as many as they may need, and one more each, which a scheduler
   * keeps free for those that run; or as there is memory for.
   *
   * @param sequences at once
   * @param tokens of each at most
   * @param free bytes, of which some are left for prefills
   * @throws TooLittleMemory when that is not one block
   */
  public int blocks(int sequences, int tokens, long free) {
    long wanted = sequences * (KvBlock.of(tokens) + 1L);
    long usable = (free - Math.min(RESERVE, free / 2)) / 10 * 9;
    long blocks = Math.min(wanted, usable / MemoryNeed.cacheBytes(config, dtype, 1, KvCache.BLOCK));
    if (blocks < 1) {
      throw new TooLittleMemory(
          "too little memory for keys and values: %,d MiB are free, and not even those of %d tokens fit"
              .formatted(free >> 20, KvCache.BLOCK));
    }
    return (int) Math.min(blocks, Integer.MAX_VALUE);
  }

  /**
   * One step of decoding: a token of each row, whose keys and values are in blocks of a pool.
   *
   * @param ids {@code (rows, 1)} int64, on the model's device
   * @param tables where the rows' keys and values are
   * @return logits {@code (rows, vocab)} float32, owned by the manager of {@code ids}
   */
  public NDArray next(NDArray ids, KvCache pool, BlockTables tables, ForwardContext context) {
    return inferred(
        ids,
        true,
        context,
        (scope, its) ->
            hidden(
                    ids,
                    Pass.blocks(scope, this, pool, tables, false, its),
                    scope,
                    UnaryOperator.identity())
                .squeeze(1));
  }

  /**
   * Runs any tokens of sequences, whose keys and values are in blocks of a pool; where {@link
   * Backend#fillsBlocks}.
   *
   * @param ids {@code (1, tokens)} int64, on the model's device
   * @param tables of each token; those of one sequence are in order, none left out
   * @param last the tokens whose logits are wanted
   * @param head as in {@link #next(NDArray, KvCache, List, boolean, ForwardContext)}
   * @return {@code (last, vocab)} float32, owned by the manager of {@code ids}
   */
  public NDArray next(
      NDArray ids,
      KvCache pool,
      BlockTables tables,
      int[] last,
      boolean head,
      ForwardContext context) {
    return inferred(
        ids,
        head,
        context,
        (scope, its) -> {
          var pass = Pass.blocks(scope, this, pool, tables, true, its);
          var wanted = Ops.of(scope, Arrays.stream(last).asLongStream().toArray(), last.length);
          return hidden(ids, pass, scope, x -> Ops.indexSelect(x, 1, wanted)).squeeze(0);
        });
  }

  /**
   * Runs new tokens behind those in the cache: prefill, or one step of decoding.
   *
   * @param ids {@code (batch, seq)} int64, on the model's device, left-padded as the cache says
   * @return logits of the last position, {@code (batch, vocab)} float32, owned by the manager of
   *     {@code ids}
   */
  public NDArray next(NDArray ids, KvCache cache, ForwardContext context) {
    return next(ids, cache, true, context);
  }

  /**
   * The same.
   *
   * @param head as in {@link #next(NDArray, KvCache, List, boolean, ForwardContext)}
   */
  public NDArray next(NDArray ids, KvCache cache, boolean head, ForwardContext context) {
    int seq = (int) ids.getShape().get(1);
    return inferred(
        ids,
        head,
        context,
        (scope, its) -> {
          var pass = Pass.cached(scope, this, cache, seq, its);
          var hidden = hidden(ids, pass, scope, x -> Ops.contiguous(Ops.narrow(x, 1, seq - 1, 1)));
          cache.advance(seq);
          return hidden.squeeze(1);
        });
  }

  /**
   * Runs new tokens of several sequences, one after another in one row, behind those in the only
   * row of a cache; where {@link Backend#runsPacked}.
   *
   * @param ids {@code (1, tokens)} int64, on the model's device
   * @param cache has room for them; its length does not change
   * @param pieces whose tokens they are, without gaps between their keys
   * @param head whether logits are wanted; else it is what the last layer gives, before the norm,
   *     {@code (pieces, hidden)} in the model's dtype
   * @return logits of each piece's last token, {@code (pieces, vocab)} float32, owned by the
   *     manager of {@code ids}
   */
  public NDArray next(
      NDArray ids, KvCache cache, List<Ranges.Piece> pieces, boolean head, ForwardContext context) {
    var ends = new long[pieces.size()];
    for (int i = 0, end = -1; i < ends.length; i++) {
      ends[i] = end += pieces.get(i).count();
    }
    return inferred(
        ids,
        head,
        context,
        (scope, its) -> {
          // sent before the layers are queued: it waits for what is
          var lastOfEach = Ops.of(scope, ends, ends.length);
          var pass = Pass.ranges(scope, this, cache, pieces, its);
          return hidden(ids, pass, scope, x -> Ops.indexSelect(x, 1, lastOfEach)).squeeze(0);
        });
  }

  /**
   * An inference pass.
   *
   * @param last runs the layers: the outputs {@code (rows, hidden)} of the last
   * @return with a head logits {@code (rows, vocab)} float32, owned by the manager of {@code ids}
   */
  private NDArray inferred(
      NDArray ids,
      boolean withHead,
      ForwardContext context,
      BiFunction<NDManager, ForwardContext, NDArray> last) {
    var owner = ids.getManager();
    try (var scope = owner.newSubManager();
        var routed = backend.begin(context);
        var whole = frozen.begin()) {
      var hidden = last.apply(scope, routed.context());
      if (!withHead) {
        hidden.attach(owner);
        return hidden;
      }
      frozen.use(FrozenWeights.HEAD, FrozenWeights.NONE);
      var logits = Ops.cast(backend.ops().head(backend.ops().norm(hidden, norm), head), Dtype.F32);
      logits.attach(owner);
      return logits;
    }
  }

  /**
   * The last layer's output before the final norm, owned by {@code scope}.
   *
   * @param wanted of {@code (batch, seq, hidden)} those tokens whose output is wanted
   */
  private NDArray hidden(NDArray ids, Pass pass, NDManager scope, UnaryOperator<NDArray> wanted) {
    var x = embed(ids);
    x.attach(scope);
    boolean early = pass.needsOnlyWanted();
    for (int i = 0; i < layers.size(); i++) {
      boolean leaves = early && i == layers.size() - 1;
      var y = forward(i, x, pass, leaves ? wanted : UnaryOperator.identity());
      if (!pass.context().training()) {
        x.close();
      }
      x = y;
    }
    return early ? x : wanted.apply(x);
  }

  /**
   * One decoder layer of a pass that goes forward.
   *
   * @param x {@code (batch, seq, hidden)}
   * @return as {@link DecoderLayer#forward} does
   */
  public NDArray forward(int layer, NDArray x, Pass pass) {
    return forward(layer, x, pass, UnaryOperator.identity());
  }

  private NDArray forward(int layer, NDArray x, Pass pass, UnaryOperator<NDArray> wanted) {
    frozen.use(layer, layer + 1 < layers.size() ? layer + 1 : FrozenWeights.HEAD);
    return layers.get(layer).forward(x, pass, wanted);
  }

  RotaryEmbedding rotary() {
    return rotary;
  }

  /** The angles of positions 0 to {@code seq}, {@code (1, seq, 1, headDim)}. */
  public RotaryEmbedding.Angles angles(NDManager owner, int seq) {
    return rotary.angles(owner, LongStream.range(0, seq).toArray(), 1);
  }

  /** Embeds ids {@code (batch, seq)} int64: {@code (batch, seq, hidden)}. */
  public NDArray embed(NDArray ids) {
    frozen.use(FrozenWeights.EMBEDDING, 0);
    return Ops.embedding(embedding, ids);
  }

  /**
   * Logits of all positions of right-padded rows.
   *
   * @param ids {@code (batch, seq)} int64
   * @return {@code (batch, seq, vocab)} in the model's dtype, owned by the manager of {@code ids}
   */
  public NDArray logits(NDArray ids, Pass pass) {
    var owner = ids.getManager();
    try (var whole = frozen.begin()) {
      var all = hidden(ids, pass, owner, UnaryOperator.identity());
      var normed = pass.ops().norm(all, norm);
      frozen.use(FrozenWeights.HEAD, FrozenWeights.NONE);
      return Ops.linear(normed, head, null);
    }
  }

  @Override
  protected NDList run(NDList inputs, boolean training) {
    var ids = inputs.head();
    var inference = ForwardContext.inference(RoutingSettings.DEFAULT, Flags.AUTO);
    var context = training ? inference.forTraining(true) : inference;
    int[] length = {(int) ids.getShape().get(1)};
    return new NDList(logits(ids, Pass.whole(ids.getManager(), this, length, context)));
  }

  @Override
  public Shape[] getOutputShapes(Shape[] inputShapes) {
    return new Shape[] {inputShapes[0].add(config.vocabSize())};
  }
}
