package org.meteora.moe;

import ai.djl.ndarray.NDArray;

/**
 * Runs layers with adapters in a training pass outside of libtorch's graph, forward and backward.
 * All such layers between the input and the result of a pass must be on one tape.
 */
public interface GatedTape extends AutoCloseable {
  /**
   * A training pass of a layer; kept for {@link #backward} if the calling thread records.
   *
   * @param x {@code (…, in)}; must depend on something that requires a gradient, unless it is the
   *     first one's and {@link #backward} ends there
   */
  GatedLinear.Output forward(GatedLinear layer, NDArray x, ForwardContext context);

  /**
   * After libtorch's own backward: adds the gradients of all layers' parameters and of everything
   * before them; empties the tape.
   *
   * @param toInput whether to go on to what the first layer's input was computed from
   */
  void backward(boolean toInput);

  @Override
  void close();
}
