package org.meteora.model;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.training.ParameterStore;
import ai.djl.util.PairList;
import org.meteora.backend.cpu.HostRows;
import org.meteora.backend.cuda.GpuRows;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * {@code x / sqrt(mean(x²) + eps) · weight} over the last dimension, the quotient in float32.
 * {@code (…, hidden)} to the same.
 */
public final class RmsNorm extends LlamaBlock {
  private final NDArray weight;
  private final NDArray eps;
  private final float epsilon;

  /**
   * @param weight {@code (hidden)}
   */
  public RmsNorm(NDArray weight, double eps) {
    this.weight = weight;
    this.epsilon = (float) eps;
    this.eps = weight.getManager().create((float) eps);
    register("weight", weight);
  }

  /** {@code (hidden)}. */
  public NDArray weight() {
    return weight;
  }

  /**
   * One pass.
   *
   * @param training keeps to operations that can be recorded
   */
  NDArray forward(NDArray x, boolean training) {
    if (training) {
      return forward(x);
    }
    if (x.getDevice().isGpu()) {
      return GpuRows.norm(x, weight, epsilon);
    }
    return HostRows.fits(x) ? HostRows.norm(x, weight, epsilon) : forward(x);
  }

  /**
   * {@code added += x} and the norm of the sum, at inference on a GPU.
   *
   * @param added as {@code x}; changed
   */
  NDArray forwardOfSum(NDArray x, NDArray added) {
    try (var rows = Ops.contiguous(x)) {
      return GpuRows.addAndNorm(rows, added, weight, epsilon);
    }
  }

  public NDArray forward(NDArray x) {
    var full = Ops.cast(x, Dtype.F32);
    var scale = Ops.rsqrt(full.square().mean(new int[] {-1}, true).add(eps));
    return Ops.cast(full.mul(scale), Ops.dtype(x)).mul(weight);
  }

  @Override
  protected NDList forwardInternal(
      ParameterStore parameterStore,
      NDList inputs,
      boolean training,
      PairList<String, Object> params) {
    return new NDList(forward(inputs.head()));
  }
}
