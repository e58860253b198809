package org.meteora.model;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import ai.djl.nn.AbstractBlock;
import ai.djl.nn.Parameter;
import java.util.ArrayList;
import java.util.Map;
import org.meteora.moe.LinearGroup;
import org.meteora.moe.MoeLinear;
import org.meteora.nn.Projection;

/**
 * What the Llama's DJL blocks share: their parameters are given, never initialised, and the output
 * has the input's shape.
 */
abstract class LlamaBlock extends AbstractBlock {
  private static final byte VERSION = 1;

  LlamaBlock() {
    super(VERSION);
  }

  final void register(String name, NDArray array) {
    addParameter(Parameter.builder().setName(name).setType(Parameter.Type.OTHER).build())
        .setArray(array);
  }

  /** The projections that read one input, as children of this block. */
  final LinearGroup group(Projection.Input input, Map<Projection, MoeLinear> linears) {
    var reading = new ArrayList<MoeLinear>();
    for (var projection : Projection.values()) {
      if (projection.input() == input) {
        reading.add(addChildBlock(projection.module(), linears.get(projection)));
      }
    }
    return new LinearGroup(reading);
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
