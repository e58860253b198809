package org.meteora.model;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import ai.djl.nn.AbstractBlock;
import ai.djl.nn.Parameter;
import ai.djl.training.ParameterStore;
import ai.djl.util.PairList;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import org.meteora.moe.GatedForward;
import org.meteora.moe.GatedLinear;
import org.meteora.nn.Projection;

/**
 * What the Llama's DJL blocks share: their parameters are given, never initialised, and the output
 * has the input's shape.
 */
abstract class LlamaBlock extends AbstractBlock {
  final void register(String name, NDArray array) {
    addParameter(Parameter.builder().setName(name).setType(Parameter.Type.OTHER).build())
        .setArray(array);
  }

  /** The projections that read one input, as children of this block. */
  final GatedForward group(
      Projection.Input input, Map<Projection, GatedLinear> linears, Backend backend) {
    return backend.of(
        input.readers().stream()
            .map(projection -> addChildBlock(projection.module(), linears.get(projection)))
            .toList());
  }

  /** What linears with one input give; their logits go where the pass wants them. */
  static List<NDArray> project(GatedForward group, NDArray x, Pass pass) {
    var outputs = group.forward(x, pass.context());
    if (pass.context().gateLogits()) {
      outputs.stream()
          .map(GatedLinear.Output::gateLogits)
          .filter(Objects::nonNull)
          .forEach(pass.gateLogits()::add);
    }
    return outputs.stream().map(GatedLinear.Output::y).toList();
  }

  /** The parts of a decoder run within it: they need a {@link Pass}. */
  @Override
  protected NDList forwardInternal(
      ParameterStore parameterStore,
      NDList inputs,
      boolean training,
      PairList<String, Object> params) {
    throw new UnsupportedOperationException(getClass().getSimpleName() + " runs within a Llama");
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
