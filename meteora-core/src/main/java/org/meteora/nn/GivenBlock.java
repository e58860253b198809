package org.meteora.nn;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import ai.djl.nn.AbstractBlock;
import ai.djl.nn.Parameter;
import ai.djl.training.ParameterStore;
import ai.djl.util.PairList;

/** A DJL block whose parameters are given, never initialised. */
public abstract class GivenBlock extends AbstractBlock {
  /** Makes an array a parameter; null is none. */
  protected final void register(String name, NDArray array) {
    if (array != null) {
      addParameter(Parameter.builder().setName(name).setType(Parameter.Type.OTHER).build())
          .setArray(array);
    }
  }

  /** A pass of this block by itself. */
  protected abstract NDList run(NDList inputs, boolean training);

  @Override
  protected final NDList forwardInternal(
      ParameterStore parameterStore,
      NDList inputs,
      boolean training,
      PairList<String, Object> params) {
    return run(inputs, training);
  }

  @Override
  public Shape[] getOutputShapes(Shape[] inputShapes) {
    return new Shape[] {inputShapes[0]};
  }

  @Override
  protected void initializeChildBlocks(NDManager manager, DataType dataType, Shape... inputShapes) {
    // all parameters are given
  }
}
