package org.meteora.moe;

import ai.djl.ndarray.NDArray;

/**
 * Runs gated layers of a training pass outside of libtorch's graph, forward and backward. All gated
 * layers between the input and the result of a pass must be on one tape.
 */
public interface GatedTape extends AutoCloseable {
  /**
   * A training pass of a layer; kept for {@link #backward} if the calling thread records.
   *
   * @param x {@code (…, in)}; must depend on something that requires a gradient
   */
  GatedLinear.Output forward(GatedLinear layer, NDArray x, ForwardContext context);

  /**
   * After libtorch's own backward: adds the gradients of all layers' parameters and of everything
   * before them; empties the tape.
   */
  void backward();

  @Override
  void close();
}
