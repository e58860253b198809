package org.meteora.model;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDArrays;
import ai.djl.ndarray.NDList;
import java.util.List;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/** {@link LayerOps} by tensor operations: any device and dtype, recorded for backward. */
public class TensorOps implements LayerOps {
  /** It has no state. */
  public static final TensorOps INSTANCE = new TensorOps();

  /** For those that do some of it otherwise. */
  protected TensorOps() {}

  @Override
  public NDArray norm(NDArray x, RmsNorm norm) {
    var full = Ops.cast(x, Dtype.F32);
    var scale = Ops.rsqrt(full.square().mean(new int[] {-1}, true).add(norm.epsOnDevice()));
    return Ops.cast(full.mul(scale), Ops.dtype(x)).mul(norm.weight());
  }

  @Override
  public Normed addAndNorm(NDArray h, NDArray added, RmsNorm norm) {
    var sum = h.add(added);
    return new Normed(sum, norm(sum, norm));
  }

  @Override
  public NDArray add(NDArray sum, NDArray x) {
    return sum.add(x);
  }

  @Override
  public Heads rotate(NDArray queries, NDArray keys, NDArray values, Pass pass, int layer) {
    var heads = rotated(queries, keys, values, pass);
    return behindTheCache(heads.queries(), heads.keys(), heads.values(), pass, layer);
  }

  /** Of this pass alone. */
  private static Heads rotated(NDArray queries, NDArray keys, NDArray values, Pass pass) {
    int headDim = (int) pass.angles().cos().getShape().get(3);
    var shape = queries.getShape();
    long heads = shape.get(2) / headDim;
    long keyHeads = keys.getShape().get(2) / headDim;
    var rotated =
        RotaryEmbedding.rotate(
            NDArrays.concat(new NDList(queries, keys), 2)
                .reshape(shape.get(0), shape.get(1), heads + keyHeads, headDim),
            pass.angles());
    return new Heads(
        Ops.transpose(Ops.narrow(rotated, 2, 0, heads), 1, 2),
        Ops.transpose(Ops.narrow(rotated, 2, heads, keyHeads), 1, 2),
        heads(values, headDim));
  }

  @Override
  public NDArray attend(NDArray queries, NDArray keys, NDArray values, Pass pass, int layer) {
    var heads = rotated(queries, keys, values, pass);
    var store = pass.cache().layer(layer);
    long rows = queries.getShape().get(0);
    long kvHeads = heads.keys().getShape().get(1);
    long headDim = heads.keys().getShape().get(3);
    var indices = pass.rows().indices((int) kvHeads);
    put(heads.keys(), store.keys(), indices.newest(), headDim);
    put(heads.values(), store.values(), indices.newest(), headDim);
    var grouped = heads.queries().reshape(rows, kvHeads, -1, headDim);
    return Ops.attention(
            grouped,
            gathered(store.keys(), indices, kvHeads, grouped),
            gathered(store.values(), indices, kvHeads, grouped),
            indices.mask(),
            false)
        .reshape(rows, 1, queries.getShape().get(2));
  }

  private static void put(NDArray fresh, NDArray pool, NDArray at, long headDim) {
    try (var flat = pool.reshape(-1, headDim)) {
      Ops.put(flat, at, fresh.reshape(-1, headDim));
    }
  }

  /** {@code (rows, kvHeads, columns, headDim)}. */
  private static NDArray gathered(
      NDArray pool, PooledRows.Indices indices, long kvHeads, NDArray like) {
    long headDim = like.getShape().get(3);
    try (var flat = pool.reshape(-1, headDim)) {
      var all = Ops.indexSelect(flat, 0, indices.all());
      all.attach(like.getManager());
      return all.reshape(like.getShape().get(0), kvHeads, indices.columns(), headDim);
    }
  }

  /** {@code (batch, seq, heads · headDim)} as {@code (batch, heads, seq, headDim)}. */
  public static NDArray heads(NDArray x, int headDim) {
    var shape = x.getShape();
    return Ops.transpose(
        x.reshape(shape.get(0), shape.get(1), shape.get(2) / headDim, headDim), 1, 2);
  }

  /** Keys and values of this pass, behind those in its cache when it has one. */
  public static Heads behindTheCache(
      NDArray queries, NDArray keys, NDArray values, Pass pass, int layer) {
    if (pass.cache() == null) {
      return new Heads(queries, keys, values);
    }
    var all = pass.cache().append(layer, keys, values);
    return new Heads(queries, all.keys(), all.values());
  }

  @Override
  public NDArray siluUp(NDArray gate, NDArray up) {
    return Ops.silu(gate).mul(up);
  }

  @Override
  public void copyColumns(KvCache from, KvCache to, List<KvCache.Columns> columns) {
    for (int layer = 0; layer < to.layers(); layer++) {
      var source = from.layer(layer);
      var target = to.layer(layer);
      for (var each : columns) {
        copy(source.keys(), target.keys(), each);
        copy(source.values(), target.values(), each);
      }
    }
  }

  private static void copy(NDArray from, NDArray to, KvCache.Columns each) {
    try (var fromRow = Ops.narrow(from, 0, each.fromRow(), 1);
        var source = Ops.narrow(fromRow, 2, each.from(), each.count());
        var toRow = Ops.narrow(to, 0, each.row(), 1);
        var target = Ops.narrow(toRow, 2, each.to(), each.count())) {
      Ops.copy(target, source);
    }
  }
}
