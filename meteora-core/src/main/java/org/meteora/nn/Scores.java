package org.meteora.nn;

/**
 * How a kernel finds the adapters' scores for a token beside the product of a linear with its
 * adapters' A: from one more matrix, or from z = A x itself. Kernels are compiled for one of these
 * but {@link #ALL}, where nothing is chosen; the order is that of the constants in {@code
 * routing.cuh}.
 */
public enum Scores {
  /** {@code x Gᵀ}: MeteoRA's gates. An adapter without a rank can be chosen. */
  PRODUCT,
  /** {@code |x Gᵀ|}. */
  MAGNITUDE,
  /** {@code x Gᵀ} divided by the standard deviation of x. */
  STANDARDIZED,
  /** The norm of the adapter's own z; there is no further matrix, and scales are 1. */
  NORM,
  /** None: what is chosen is given with a step. There is no further matrix. */
  GIVEN,
  /**
   * None: all adapters act on every token, with weights that are given with a step or computed for
   * each layer. There is no further matrix of a linear's own.
   */
  ALL
}
