package org.meteora.model;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.List;

/** An optimiser's work on flat float32 buffers by a backend's own kernels, one launch each. */
public interface OptimizerKernels {
  /**
   * A copy of values into a tensor of the model's dtype.
   *
   * @param from row-major, float32 or the model's dtype, all copies alike
   * @param to one or two dimensions, with any strides
   */
  record Copy(NDArray from, NDArray to) {}

  /**
   * Makes ready what queues copies, again and again.
   *
   * @param owner of what they need
   */
  Runnable prepare(List<Copy> copies, NDManager owner);

  /** The L2 norm of the numbers {@code from} to {@code to}. */
  double norm(NDArray values, long from, long to);

  /**
   * AdamW's step, of which the factors have been worked out.
   *
   * @param gradientScale multiplies the gradients
   * @param decay multiplies the values
   * @param rate of the means over the variances' roots
   * @param bias divides the roots
   */
  record Step(
      double gradientScale,
      double decay,
      double rate,
      double bias,
      double beta1,
      double beta2,
      double epsilon) {}

  /** AdamW's step on the numbers {@code from} to {@code to} of all four. */
  void adamW(
      NDArray values,
      NDArray gradients,
      NDArray means,
      NDArray variances,
      long from,
      long to,
      Step step);
}
