package org.meteora.model;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import org.meteora.moe.GatedForward;
import org.meteora.moe.GatedLinear;
import org.meteora.nn.GivenBlock;
import org.meteora.nn.Projection;

/** What the parts of a Llama share: as DJL blocks their output has the input's shape. */
abstract class LlamaBlock extends GivenBlock {
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
  protected NDList run(NDList inputs, boolean training) {
    throw new UnsupportedOperationException(getClass().getSimpleName() + " runs within a Llama");
  }
}
