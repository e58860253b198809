package org.meteora.model;

import ai.djl.ndarray.NDArray;
import java.util.List;

/** Where the gradients of trained parameters are summed. */
public interface Gradients {
  /**
   * Some rows or columns of a parameter's gradient, or all of it.
   *
   * @param sum float32, row-major, at the same place as long as this exists
   * @param dim which dimension of the parameter is cut, at {@code from}; −1: all is here
   */
  record Part(NDArray sum, int dim, long from, long length) {}

  /**
   * The parts of a parameter that are trained, none of it when it is not.
   *
   * @param parameter one of the model's tensors: the object itself
   */
  List<Part> of(NDArray parameter);
}
