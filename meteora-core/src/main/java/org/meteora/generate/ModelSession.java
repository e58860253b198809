package org.meteora.generate;

import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.moe.ForwardContext;
import org.meteora.tensor.Ops;

/** Decode steps as passes of the model itself, on any device. */
public final class ModelSession implements DecodeSession {
  private final Llama model;
  private final KvCache cache;
  private final Sampler sampler;
  private ForwardContext context;

  /** See {@link DecodeSession.Provider#begin}. */
  public ModelSession(
      Llama model, KvCache cache, int[] rows, GenerationConfig config, ForwardContext context) {
    this.model = model;
    this.cache = cache;
    this.sampler = new Sampler(config, 0);
    this.context = context;
    keepRows(rows);
  }

  /** Sessions of this kind for a model. */
  public static DecodeSession.Provider of(Llama model) {
    return new DecodeSession.Provider() {
      @Override
      public DecodeSession begin(
          KvCache filled,
          int[] rows,
          int maxLength,
          GenerationConfig config,
          ForwardContext context) {
        return new ModelSession(model, filled, rows, config, context);
      }

      @Override
      public void close() {
        // nothing is kept
      }
    };
  }

  @Override
  public int[] step(int[] tokens, int[][] banned, long[] uniform) {
    var routing = context.routing();
    context = context.withRouting(routing.withRouter(routing.router().next(tokens)));
    var ids = new long[tokens.length];
    for (int row = 0; row < ids.length; row++) {
      ids[row] = tokens[row];
    }
    return sampler.choose(logits(model, cache, ids, 1, context), banned, uniform);
  }

  /**
   * Runs new tokens through the model.
   *
   * @param ids {@code (rows, width)} row-major
   * @return the last position's logits {@code (rows, vocab)}
   */
  static float[] logits(Llama model, KvCache cache, long[] ids, int width, ForwardContext context) {
    try (var scope = model.manager().newSubManager()) {
      var input = Ops.of(scope, ids, ids.length / width, width);
      return model.next(input, cache, context).toFloatArray();
    }
  }

  @Override
  public void keepRows(int[] rows) {
    if (rows.length < cache.rows()) {
      cache.keepRows(rows);
      var routing = context.routing();
      context = context.withRouting(routing.withRouter(routing.router().keepRows(rows)));
    }
  }

  @Override
  public void close() {
    // the cache is the caller's
  }
}
