package org.meteora.model;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.training.ParameterStore;
import ai.djl.util.PairList;
import java.util.Map;
import java.util.stream.Stream;
import org.meteora.backend.cuda.GpuRows;
import org.meteora.moe.LinearGroup;
import org.meteora.moe.MoeLinear;
import org.meteora.nn.Projection;
import org.meteora.tensor.Ops;

/** {@code down(silu(gate(x)) · up(x))}: {@code (batch, seq, hidden)} to the same. */
public final class Mlp extends LlamaBlock {
  private final LinearGroup input;
  private final LinearGroup output;

  Mlp(Map<Projection, MoeLinear> linears) {
    this.input = group(Projection.Input.MLP, linears);
    this.output = group(Projection.Input.MLP_INNER, linears);
  }

  NDArray forward(NDArray x, Pass pass) {
    var projected = Attention.project(input, x, pass);
    var gates = projected.get(0);
    var up = projected.get(1);
    NDArray inner;
    if (!pass.training() && x.getDevice().isGpu()) {
      GpuRows.siluUp(gates, up);
      inner = gates;
    } else {
      inner = Ops.silu(gates).mul(up);
    }
    return Attention.project(output, inner, pass).getFirst();
  }

  Stream<MoeLinear> projections() {
    return Stream.of(input, output).flatMap(group -> group.linears().stream());
  }

  @Override
  protected NDList forwardInternal(
      ParameterStore parameterStore,
      NDList inputs,
      boolean training,
      PairList<String, Object> params) {
    return new NDList(
        forward(
            inputs.head(),
            new Pass(null, null, true, null, training, new java.util.ArrayList<>())));
  }
}
