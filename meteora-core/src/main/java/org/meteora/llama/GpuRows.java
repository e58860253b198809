package org.meteora.llama;

import ai.djl.ndarray.NDArray;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import org.meteora.cuda.Cuda;
import org.meteora.cuda.RowKernels;
import org.meteora.cuda.Stream;
import org.meteora.torch.Dtype;
import org.meteora.torch.Ops;

/** What lies between a Llama's products at inference on a GPU, one launch each. */
final class GpuRows {
  private record Key(int device, Dtype dtype) {}

  private static final Map<Key, RowKernels> KERNELS = new ConcurrentHashMap<>();
  private static final Stream LIBTORCH = Stream.of(0);

  private GpuRows() {}

  private static RowKernels kernels(NDArray x) {
    var cuda = Cuda.device(x.getDevice().getDeviceId());
    cuda.makeCurrent();
    return KERNELS.computeIfAbsent(
        new Key(cuda.index(), Ops.dtype(x)), key -> new RowKernels(cuda, key.dtype()));
  }

  /**
   * {@code rmsnorm(x) · weight}.
   *
   * @param x {@code (…, hidden)}
   */
  static NDArray norm(NDArray x, NDArray weight, float eps) {
    var shape = x.getShape();
    int hidden = (int) shape.get(shape.dimension() - 1);
    var out = Ops.empty(x.getManager(), Ops.dtype(x), shape.getShape());
    try (var rows = Ops.contiguous(x)) {
      kernels(x)
          .norm(
              Ops.dataPointer(rows),
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

  /** {@code gate = silu(gate) · up}, both row-major. */
  static void siluUp(NDArray gate, NDArray up) {
    long pointer = Ops.dataPointer(gate);
    kernels(gate).siluUp(pointer, Ops.dataPointer(up), pointer, gate.size(), LIBTORCH);
  }
}
