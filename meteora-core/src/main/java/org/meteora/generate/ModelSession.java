package org.meteora.generate;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.List;
import java.util.function.UnaryOperator;
import org.meteora.TooLittleMemory;
import org.meteora.model.BlockTables;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.Router;
import org.meteora.tensor.Ops;

/** Decode steps as passes of the model itself, on any device. */
public final class ModelSession implements DecodeSession {
  private final Llama model;
  private final NDManager manager;
  private final ForwardContext context;
  private final KvCache pool;

  /** See {@link DecodeSession.Provider#begin}. */
  public ModelSession(Llama model, int sequences, int tokens, ForwardContext context) {
    this.model = model;
    this.context = context;
    int blocks = model.blocks(sequences, tokens, model.backend().memory(Long.MAX_VALUE).free());
    this.manager = model.manager().newSubManager();
    try {
      this.pool = model.newPool(manager, blocks);
    } catch (RuntimeException | Error e) {
      manager.close();
      throw e;
    }
  }

  /** Sessions of this kind for a model. */
  public static DecodeSession.Provider of(Llama model) {
    return (sequences, tokens, context) -> new ModelSession(model, sequences, tokens, context);
  }

  @Override
  public KvCache pool() {
    return pool;
  }

  @Override
  public void join(KvCache filled, List<KvCache.Columns> columns) {
    model.backend().ops().copyColumns(filled, pool, columns);
  }

  @Override
  public int[] step(List<Next> rows, boolean goesOn) {
    var ids = rows.stream().mapToLong(Next::token).toArray();
    var tables =
        new BlockTables(
            rows.stream().map(Next::blocks).toArray(int[][]::new),
            rows.stream().mapToInt(Next::length).toArray());
    var its = routed(rows);
    try (var scope = model.manager().newSubManager()) {
      var logits = run(scope, ids, ids.length, ids.length, it -> model.next(it, pool, tables, its));
      return first(rows, logits);
    }
  }

  @Override
  public int[] first(List<Next> rows, NDArray last) {
    float[] logits = last.toFloatArray();
    int vocab = logits.length / rows.size();
    var tokens = new int[rows.size()];
    for (int i = 0; i < tokens.length; i++) {
      var next = rows.get(i);
      tokens[i] =
          new Sampler(next.config(), 0)
              .chooseFinite(logits, i * vocab, vocab, next.banned(), next.uniform());
    }
    return tokens;
  }

  /** With each sequence's own router, if they have some. */
  private ForwardContext routed(List<Next> rows) {
    if (rows.getFirst().router().isEmpty()) {
      return context;
    }
    var routers = rows.stream().map(next -> next.router().orElseThrow()).toList();
    return context.withRouting(context.routing().withRouter(new Router.Rows(routers)));
  }

  /**
   * Runs tokens through the model.
   *
   * @param owner of what it returns, on the model's device
   * @param ids {@code (rows, tokens)} row-major
   * @param sequences whose tokens they are
   * @param pass what {@link Llama} does with them
   */
  static NDArray run(
      NDManager owner, long[] ids, int rows, int sequences, UnaryOperator<NDArray> pass) {
    try (var scope = owner.newSubManager()) {
      var result = pass.apply(Ops.of(scope, ids, rows, ids.length / rows));
      result.attach(owner);
      return result;
    } catch (RuntimeException e) {
      // what was taken is free again
      if (TooLittleMemory.isReportedBy(e)) {
        throw new TooLittleMemory(
            "too little memory to compute %,d tokens of %d sequences at once"
                .formatted(ids.length, sequences));
      }
      throw e;
    }
  }

  @Override
  public void close() {
    manager.close();
  }
}
