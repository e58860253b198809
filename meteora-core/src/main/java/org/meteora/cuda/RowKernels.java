package org.meteora.cuda;

import org.meteora.torch.Dtype;

/**
 * What a Llama does between its matrix products, for many tokens (prefill), on somebody else's
 * tensors and stream.
 */
public final class RowKernels {
  private final Kernels kernels;

  /** Kernels for f32, f16 or bf16. */
  public RowKernels(Cuda cuda, Dtype dtype) {
    this.kernels = Kernels.of(cuda, new Kernels.Constants(dtype, 1, 1, 0, 0));
  }

  /**
   * {@code h += delta; out = rmsnorm(h) · weight} in one pass over memory.
   *
   * @param h (rows, hidden), contiguous; changed only with a delta
   * @param delta (rows, hidden), or 0 for none
   * @param weight (hidden)
   * @param out (rows, hidden)
   */
  public void norm(
      long h, long delta, long weight, long out, long rows, int hidden, float eps, Stream stream) {
    if (rows > 0) {
      var argument =
          new Struct().add(h).add(delta).add(weight).add(out).add(rows).add(hidden).add(eps);
      kernels
          .get("norm_rows")
          .launch(Math.toIntExact(rows), 1, 1, 256, 0, false, argument)
          .on(stream);
    }
  }

  /**
   * {@code out = silu(gate) · up}, elementwise over {@code count} elements; out may be gate or up.
   */
  public void siluUp(long gate, long up, long out, long count, Stream stream) {
    if (count > 0) {
      var aligned = (gate | up | out) % 16 == 0;
      var argument = new Struct().add(gate).add(up).add(out).add(count).add(aligned).add(0);
      kernels
          .get("silu_rows")
          .launch(Math.toIntExact((count + 2047) / 2048), 1, 1, 256, 0, false, argument)
          .on(stream);
    }
  }
}
