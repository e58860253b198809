package org.meteora.model;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.stream.LongStream;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.GatedTape;
import org.meteora.moe.Router;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * One pass through the layers: positions, mask and cache, and what the request wants of the gated
 * layers.
 *
 * @param angles of every position
 * @param mask added to the scores, {@code (batch, 1, seq, keys)} or broadcastable to it; null: none
 *     but {@code causal}
 * @param causal hide later keys
 * @param samples lengths of the samples that lie one after another in the only row, each of which
 *     sees itself alone; null: a row is one
 * @param ranges where the tokens of several sequences lie, of which each sees itself alone; null: a
 *     row is one sequence
 * @param cache keys and values before this pass; null in training
 * @param rows where keys and values of rows are, where the cache is a pool; else null
 * @param ops what lies between the products
 * @param gateLogits filled with every gate's logits {@code (batch, seq, N)}, in the order of layers
 *     and projections, where the context asks for them
 */
public record Pass(
    RotaryEmbedding.Angles angles,
    NDArray mask,
    boolean causal,
    int[] samples,
    Ranges ranges,
    KvCache cache,
    PooledRows rows,
    LayerOps ops,
    ForwardContext context,
    List<NDArray> gateLogits) {

  /** This pass, with its gated layers on a tape; its list of gate logits is a new one. */
  public Pass on(Optional<GatedTape> tape, Backend backend) {
    return with(
        tape.isPresent() ? backend.ops(tape.get()) : ops,
        context.withTape(tape),
        new ArrayList<>());
  }

  private Pass with(LayerOps between, ForwardContext other, List<NDArray> logits) {
    return new Pass(angles, mask, causal, samples, ranges, cache, rows, between, other, logits);
  }

  /**
   * Whether what is not asked for may be left out of the last layer: nobody hears of its gates, and
   * who chooses adapters looks at each token by itself.
   */
  boolean needsOnlyWanted() {
    return context.routing().router() instanceof Router.Scoring
        && context.listener().isEmpty()
        && !context.gateLogits();
  }

  /** This pass inside a decoder layer whose q, k and v read this, for routers that look at it. */
  Pass inside(NDArray layerInput) {
    return context.routing().router() instanceof Router.Weighing
        ? with(ops, context.withLayerInput(layerInput), gateLogits)
        : this;
  }

  /**
   * A pass over {@code seq} new tokens behind those in the cache.
   *
   * @param owner of masks and angles; must live as long as the pass
   */
  static Pass cached(NDManager owner, Llama llama, KvCache cache, int seq, ForwardContext context) {
    int past = cache.length();
    var padding = cache.padding();
    int rows = Arrays.stream(padding).anyMatch(each -> each > 0) ? padding.length : 1;
    var position = new long[rows * seq];
    for (int row = 0; row < rows; row++) {
      for (int i = 0; i < seq; i++) {
        position[row * seq + i] = Math.max(0, past + i - padding[row]);
      }
    }
    cache.reserve(past + seq);
    var mask = cache.paddingMask(owner, seq);
    boolean causal = seq > 1 && mask == null && past == 0;
    if (seq > 1 && !causal) {
      var later = later(owner, past, seq, llama.dtype());
      mask = mask == null ? later : mask.add(later);
    }
    var angles = llama.rotary().angles(owner, position, rows);
    var ops = llama.backend().ops();
    return new Pass(angles, mask, causal, null, null, cache, null, ops, context, new ArrayList<>());
  }

  /**
   * A pass over tokens whose keys and values are in blocks, each its own row or all in one.
   *
   * @param owner of masks, angles and indices; must live as long as the pass
   */
  static Pass blocks(
      NDManager owner,
      Llama llama,
      KvCache pool,
      BlockTables tables,
      boolean oneRow,
      ForwardContext context) {
    var position = Arrays.stream(tables.lengths()).asLongStream().toArray();
    var angles = llama.rotary().angles(owner, position, oneRow ? 1 : position.length);
    var rows = new PooledRows(owner, tables, llama.dtype());
    var ops = llama.backend().ops();
    return new Pass(angles, null, false, null, null, pool, rows, ops, context, new ArrayList<>());
  }

  /**
   * A pass over pieces of several sequences in one row of a cache that has room for them.
   *
   * @param owner of ranges and angles; must live as long as the pass
   */
  static Pass ranges(
      NDManager owner,
      Llama llama,
      KvCache cache,
      List<Ranges.Piece> pieces,
      ForwardContext context) {
    var position =
        pieces.stream()
            .flatMapToLong(each -> LongStream.range(each.known(), each.known() + each.count()));
    var angles = llama.rotary().angles(owner, position.toArray(), 1);
    var ranges = Ranges.of(owner, pieces);
    var ops = llama.backend().ops();
    return new Pass(angles, null, true, null, ranges, cache, null, ops, context, new ArrayList<>());
  }

  /**
   * A pass over whole right-padded rows, or over one row of several samples, each of which sees
   * itself alone, without a cache. Causality alone keeps padding out of every real token's sight.
   *
   * @param owner of the angles; must outlive the backward pass
   * @param lengths of the samples of a row, one after another
   */
  public static Pass whole(NDManager owner, Llama llama, int[] lengths, ForwardContext context) {
    var position = Arrays.stream(lengths).asLongStream().flatMap(n -> LongStream.range(0, n));
    var angles = llama.rotary().angles(owner, position.toArray(), 1);
    var samples = lengths.length > 1 ? lengths : null;
    var ops = context.training() ? TensorOps.INSTANCE : llama.backend().ops();
    return new Pass(angles, null, true, samples, null, null, null, ops, context, new ArrayList<>());
  }

  private static NDArray later(NDManager manager, int past, int seq, Dtype dtype) {
    long columns = past + seq;
    var keys = Ops.of(manager, LongStream.range(0, columns).toArray(), 1, columns);
    var queries = Ops.of(manager, LongStream.range(past, columns).toArray(), seq, 1);
    // made on the device: the host would fill and send as many numbers as there are scores
    return Ops.scale(Ops.cast(keys.gt(queries), dtype), KvCache.MASKED).reshape(1, 1, seq, columns);
  }
}
