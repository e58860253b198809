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
 * @param context of the gated layers
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

  /**
   * This pass, with its gated layers on a tape; its list of gate logits is a new one.
   *
   * @param backend whose tape it is
   */
  public Pass on(Optional<GatedTape> tape, Backend backend) {
    return with(
        tape.isPresent() ? backend.ops(tape.get()) : ops,
        context.withTape(tape),
        new ArrayList<>());
  }

  private Pass with(LayerOps between, ForwardContext other, List<NDArray> logits) {
    return new Pass(angles, mask, causal, samples, ranges, cache, rows, between, other, logits);
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
   * @param manager owns masks and angles; they must live as long as the pass
   */
  static Pass cached(
      NDManager manager,
      RotaryEmbedding rotary,
      KvCache cache,
      Dtype dtype,
      int seq,
      LayerOps ops,
      ForwardContext context) {
    int past = cache.length();
    var padding = cache.padding();
    boolean padded = false;
    for (int each : padding) {
      padded |= each > 0;
    }
    int rows = padded ? padding.length : 1;
    var position = new long[rows * seq];
    for (int row = 0; row < rows; row++) {
      for (int i = 0; i < seq; i++) {
        position[row * seq + i] = Math.max(0, past + i - padding[row]);
      }
    }
    cache.prepare(seq);
    var mask = cache.paddingMask(manager, seq);
    boolean causal = false;
    if (seq > 1) {
      if (mask == null && past == 0) {
        causal = true;
      } else {
        var later = later(manager, past, seq, dtype);
        mask = mask == null ? later : mask.add(later);
      }
    }
    return new Pass(
        rotary.angles(manager, position, rows),
        mask,
        causal,
        null,
        null,
        cache,
        null,
        ops,
        context,
        new ArrayList<>());
  }

  /**
   * A pass over tokens whose keys and values are in blocks, each its own row or all in one.
   *
   * @param manager owns masks, angles and indices; they must live as long as the pass
   */
  static Pass blocks(
      NDManager manager,
      RotaryEmbedding rotary,
      KvCache pool,
      BlockTables tables,
      boolean oneRow,
      Dtype dtype,
      LayerOps ops,
      ForwardContext context) {
    var position = Arrays.stream(tables.lengths()).asLongStream().toArray();
    return new Pass(
        rotary.angles(manager, position, oneRow ? 1 : position.length),
        null,
        false,
        null,
        null,
        pool,
        new PooledRows(manager, tables, dtype),
        ops,
        context,
        new ArrayList<>());
  }

  /**
   * A pass over pieces of several sequences in one row of a cache that has room for them.
   *
   * @param manager owns ranges and angles; they must live as long as the pass
   */
  static Pass ranges(
      NDManager manager,
      RotaryEmbedding rotary,
      KvCache cache,
      List<Ranges.Piece> pieces,
      LayerOps ops,
      ForwardContext context) {
    var position =
        pieces.stream()
            .flatMapToLong(each -> LongStream.range(each.known(), each.known() + each.count()));
    return new Pass(
        rotary.angles(manager, position.toArray(), 1),
        null,
        true,
        null,
        Ranges.of(manager, pieces),
        cache,
        null,
        ops,
        context,
        new ArrayList<>());
  }

  /**
   * A pass over whole right-padded rows, without a cache. Causality alone keeps padding out of
   * every real token's sight.
   *
   * @param manager owns the angles
   */
  static Pass whole(
      NDManager manager, RotaryEmbedding rotary, int seq, LayerOps ops, ForwardContext context) {
    return whole(manager, rotary, new int[] {seq}, null, ops, context);
  }

  /**
   * A pass over one row of whole samples, one after another, without a cache.
   *
   * @param manager owns the angles
   * @param samples their lengths
   */
  static Pass packed(
      NDManager manager,
      RotaryEmbedding rotary,
      int[] samples,
      LayerOps ops,
      ForwardContext context) {
    return whole(manager, rotary, samples, samples.length > 1 ? samples : null, ops, context);
  }

  private static Pass whole(
      NDManager manager,
      RotaryEmbedding rotary,
      int[] lengths,
      int[] samples,
      LayerOps ops,
      ForwardContext context) {
    var position = Arrays.stream(lengths).asLongStream().flatMap(n -> LongStream.range(0, n));
    return new Pass(
        rotary.angles(manager, position.toArray(), 1),
        null,
        true,
        samples,
        null,
        null,
        null,
        context.training() ? TensorOps.INSTANCE : ops,
        context,
        new ArrayList<>());
  }

  private static NDArray later(NDManager manager, int past, int seq, Dtype dtype) {
    long columns = past + seq;
    var keys = Ops.of(manager, LongStream.range(0, columns).toArray(), 1, columns);
    var queries = Ops.of(manager, LongStream.range(past, columns).toArray(), seq, 1);
    // made on the device: the host would fill and send as many numbers as there are scores
    return Ops.scale(Ops.cast(keys.gt(queries), dtype), KvCache.MASKED).reshape(1, 1, seq, columns);
  }
}
