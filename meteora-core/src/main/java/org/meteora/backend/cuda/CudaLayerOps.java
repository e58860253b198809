package org.meteora.backend.cuda;

import ai.djl.ndarray.NDArray;
import java.util.List;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.kernel.PrefillKernels;
import org.meteora.cuda.kernel.PrefillKernels.PrefillCopyColumns;
import org.meteora.cuda.kernel.PrefillKernels.PrefillRmsNorm;
import org.meteora.cuda.kernel.PrefillKernels.PrefillRopeAppend;
import org.meteora.model.KvCache;
import org.meteora.model.Pass;
import org.meteora.model.RmsNorm;
import org.meteora.model.TensorOps;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/** What lies between a Llama's products at inference on a GPU, one launch each. */
public final class CudaLayerOps extends TensorOps {
  private final Cuda cuda;
  private final Dtype dtype;
  private PrefillKernels kernels;

  /**
   * @param dtype of activations
   */
  CudaLayerOps(Cuda cuda, Dtype dtype) {
    this.cuda = cuda;
    this.dtype = dtype;
  }

  /** Compiled at first use: training does without. */
  private synchronized PrefillKernels kernels() {
    cuda.makeCurrent();
    if (kernels == null) {
      kernels = new PrefillKernels(cuda, dtype);
    }
    return kernels;
  }

  @Override
  public NDArray norm(NDArray x, RmsNorm norm) {
    return norm(x, 0, norm);
  }

  @Override
  public Normed addAndNorm(NDArray h, NDArray added, RmsNorm norm) {
    return new Normed(added, norm(h, Ops.dataPointer(added), norm));
  }

  /**
   * @param delta is added first, and becomes the sum; or 0
   */
  private NDArray norm(NDArray x, long delta, RmsNorm norm) {
    var shape = x.getShape();
    int hidden = (int) shape.get(shape.dimension() - 1);
    var out = Ops.empty(x.getManager(), Ops.dtype(x), shape.getShape());
    try (var rows = Ops.contiguous(x)) {
      long h = Ops.dataPointer(rows);
      long weight = Ops.dataPointer(norm.weight());
      long to = Ops.dataPointer(out);
      long count = shape.size() / hidden;
      kernels()
          .norm(
              new PrefillRmsNorm(h, delta, delta, weight, to, count, hidden, norm.eps()),
              Stream.LIBTORCH);
    }
    return out;
  }

  @Override
  public NDArray add(NDArray sum, NDArray x) {
    return sum.addi(x);
  }

  @Override
  public Heads rotate(NDArray queries, NDArray keys, NDArray values, Pass pass, int layer) {
    if (pass.cache() == null) {
      return super.rotate(queries, keys, values, pass, layer);
    }
    var cache = pass.cache();
    var store = cache.layer(layer);
    var cos = pass.angles().cos();
    int headDim = (int) cos.getShape().get(3);
    int seq = (int) queries.getShape().get(1);
    var ranges = pass.ranges();
    kernels()
        .rope(
            new PrefillRopeAppend(
                Ops.dataPointer(queries),
                Ops.dataPointer(keys),
                Ops.dataPointer(values),
                Ops.dataPointer(cos),
                Ops.dataPointer(pass.angles().sin()),
                Ops.dataPointer(store.keys()),
                Ops.dataPointer(store.values()),
                ranges == null ? 0 : Ops.dataPointer(ranges.columns()),
                queries.getShape().get(0) * seq,
                cache.capacity(),
                cache.length(),
                seq,
                (int) cos.getShape().get(0),
                (int) queries.getShape().get(2) / headDim,
                (int) keys.getShape().get(2) / headDim,
                headDim,
                true),
            Stream.LIBTORCH);
    var manager = queries.getManager();
    int from = ranges == null ? 0 : ranges.first();
    int count = ranges == null ? cache.length() + seq : ranges.count();
    return new Heads(
        heads(queries, headDim),
        cache.columns(store.keys(), from, count, manager),
        cache.columns(store.values(), from, count, manager));
  }

  @Override
  public NDArray siluUp(NDArray gate, NDArray up) {
    long pointer = Ops.dataPointer(gate);
    kernels().siluUp(pointer, Ops.dataPointer(up), pointer, gate.size(), Stream.LIBTORCH);
    return gate;
  }

  @Override
  public void copyColumns(KvCache from, KvCache to, List<KvCache.Columns> columns) {
    if (columns.isEmpty()) {
      return;
    }
    var numbers = new long[5 * columns.size()];
    int longest = 0;
    for (int i = 0; i < columns.size(); i++) {
      var each = columns.get(i);
      numbers[5 * i] = each.fromRow();
      numbers[5 * i + 1] = each.from();
      numbers[5 * i + 2] = each.row();
      numbers[5 * i + 3] = each.to();
      numbers[5 * i + 4] = each.count();
      longest = Math.max(longest, each.count());
    }
    var first = to.layer(0).keys();
    try (var entries = Ops.of(first.getManager(), numbers, numbers.length)) {
      for (int layer = 0; layer < to.layers(); layer++) {
        var copy =
            new PrefillCopyColumns(
                Ops.dataPointer(from.layer(layer).keys()),
                Ops.dataPointer(from.layer(layer).values()),
                Ops.dataPointer(to.layer(layer).keys()),
                Ops.dataPointer(to.layer(layer).values()),
                Ops.dataPointer(entries),
                from.capacity(),
                to.capacity(),
                (int) first.getShape().get(1),
                (int) first.getShape().get(3));
        kernels().copyColumns(copy, columns.size(), longest, Stream.LIBTORCH);
      }
    }
  }
}
