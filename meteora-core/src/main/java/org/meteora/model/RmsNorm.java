package org.meteora.model;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;

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

  /** eps, float32. */
  public float eps() {
    return epsilon;
  }

  /** eps as a float32 scalar on the weight's device. */
  NDArray epsOnDevice() {
    return eps;
  }

  /** By tensor operations, recorded for backward. */
  public NDArray forward(NDArray x) {
    return TensorOps.INSTANCE.norm(x, this);
  }

  @Override
  protected NDList run(NDList inputs, boolean training) {
    return new NDList(forward(inputs.head()));
  }
}
