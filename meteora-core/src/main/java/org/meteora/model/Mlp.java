package org.meteora.model;

import ai.djl.ndarray.NDArray;
import java.util.Map;
import org.meteora.moe.GatedForward;
import org.meteora.moe.GatedLinear;
import org.meteora.nn.Projection;

/** {@code down(silu(gate(x)) · up(x))}: {@code (batch, seq, hidden)} to the same. */
public final class Mlp extends LlamaBlock {
  private final GatedForward input;
  private final GatedForward output;

  Mlp(Map<Projection, GatedLinear> linears, Backend backend) {
    this.input = group(Projection.Input.MLP, linears, backend);
    this.output = group(Projection.Input.MLP_INNER, linears, backend);
  }

  NDArray forward(NDArray x, Pass pass) {
    var projected = project(input, x, pass);
    return project(output, pass.ops().siluUp(projected.get(0), projected.get(1)), pass).getFirst();
  }
}
