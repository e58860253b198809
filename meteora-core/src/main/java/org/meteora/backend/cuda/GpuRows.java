package org.meteora.backend.cuda;

import ai.djl.ndarray.NDArray;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.kernel.PrefillKernels;
import org.meteora.model.Pass;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/** What lies between a Llama's products at inference on a GPU, one launch each. */
public final class GpuRows {
  private record Key(int device, Dtype dtype) {}

  private static final Map<Key, PrefillKernels> KERNELS = new ConcurrentHashMap<>();
  private static final Stream LIBTORCH = Stream.of(0);

  private GpuRows() {}

  private static PrefillKernels kernels(NDArray x) {
    var cuda = Cuda.device(x.getDevice().getDeviceId());
    cuda.makeCurrent();
    return KERNELS.computeIfAbsent(
        new Key(cuda.index(), Ops.dtype(x)), key -> new PrefillKernels(cuda, key.dtype()));
  }

  /**
   * {@code rmsnorm(x) · weight}.
   *
   * @param x {@code (…, hidden)}
   */
  public static NDArray norm(NDArray x, NDArray weight, float eps) {
    var shape = x.getShape();
    int hidden = (int) shape.get(shape.dimension() - 1);
    var out = Ops.empty(x.getManager(), Ops.dtype(x), shape.getShape());
    try (var rows = Ops.contiguous(x)) {
      kernels(x)
          .norm(
              Ops.dataPointer(rows),
              0,
              0,
              Ops.dataPointer(weight),
              Ops.dataPointer(out),
              shape.size() / hidden,
              hidden,
              eps,
              LIBTORCH);
    }
    return out;
  }

  /**
   * {@code added += h}, and {@code rmsnorm(added) · weight} of what it is then.
   *
   * @param h {@code (…, hidden)}, row-major
   * @param added as {@code h}; changed
   */
  public static NDArray addAndNorm(NDArray h, NDArray added, NDArray weight, float eps) {
    var shape = h.getShape();
    int hidden = (int) shape.get(shape.dimension() - 1);
    var out = Ops.empty(h.getManager(), Ops.dtype(h), shape.getShape());
    long sum = Ops.dataPointer(added);
    kernels(h)
        .norm(
            Ops.dataPointer(h),
            sum,
            sum,
            Ops.dataPointer(weight),
            Ops.dataPointer(out),
            shape.size() / hidden,
            hidden,
            eps,
            LIBTORCH);
    return out;
  }

  /** All keys and values of a layer so far. */
  public record Cached(NDArray keys, NDArray values) {}

  /**
   * Rotates queries in place, and puts keys, rotated, and values behind those in the pass's cache.
   *
   * @param queries {@code (batch, seq, heads · headDim)}, row-major; keys and values as well, of
   *     their heads
   * @return {@code (batch, kvHeads, length + seq, headDim)} each, owned by the manager of {@code
   *     queries}
   */
  public static Cached rotateIntoCache(
      NDArray queries, NDArray keys, NDArray values, Pass pass, int layer) {
    var cache = pass.cache();
    var store = cache.layer(layer);
    var cos = pass.angles().cos();
    int headDim = (int) cos.getShape().get(3);
    int seq = (int) queries.getShape().get(1);
    kernels(queries)
        .rope(
            new PrefillKernels.Heads(
                (int) queries.getShape().get(0),
                seq,
                (int) queries.getShape().get(2) / headDim,
                (int) keys.getShape().get(2) / headDim,
                headDim,
                cache.capacity(),
                cache.length()),
            Ops.dataPointer(queries),
            Ops.dataPointer(keys),
            Ops.dataPointer(values),
            Ops.dataPointer(cos),
            Ops.dataPointer(pass.angles().sin()),
            (int) cos.getShape().get(0),
            Ops.dataPointer(store.keys()),
            Ops.dataPointer(store.values()),
            LIBTORCH);
    var manager = queries.getManager();
    return new Cached(
        cache.firstWith(store.keys(), seq, manager), cache.firstWith(store.values(), seq, manager));
  }

  /** {@code gate = silu(gate) · up}, both row-major. */
  public static void siluUp(NDArray gate, NDArray up) {
    long pointer = Ops.dataPointer(gate);
    kernels(gate).siluUp(pointer, Ops.dataPointer(up), pointer, gate.size(), LIBTORCH);
  }
}
