package org.meteora.llama;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.training.ParameterStore;
import ai.djl.util.PairList;
import org.meteora.moe.MoeLinear;
import org.meteora.torch.Ops;

/** {@code down(silu(gate(x)) · up(x))}: {@code (batch, seq, hidden)} to the same. */
public final class Mlp extends LlamaBlock {
  private final MoeLinear gate;
  private final MoeLinear up;
  private final MoeLinear down;

  Mlp(MoeLinear gate, MoeLinear up, MoeLinear down) {
    this.gate = addChildBlock("gate_proj", gate);
    this.up = addChildBlock("up_proj", up);
    this.down = addChildBlock("down_proj", down);
  }

  NDArray forward(NDArray x, Pass pass) {
    if (!pass.training() && x.getDevice().isGpu()) {
      var gates = Attention.project(gate, x, pass);
      GpuRows.siluUp(gates, Attention.project(up, x, pass));
      return Attention.project(down, gates, pass);
    }
    var gated = Ops.silu(Attention.project(gate, x, pass));
    return Attention.project(down, gated.mul(Attention.project(up, x, pass)), pass);
  }

  MoeLinear[] projections() {
    return new MoeLinear[] {gate, up, down};
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
