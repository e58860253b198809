package org.meteora.router;

import ai.djl.ndarray.NDArray;
import java.util.Collections;
import java.util.List;
import java.util.Optional;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.LayerGate;
import org.meteora.moe.Router;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * LoRA-Flow (arXiv 2402.11455): for every token and layer {@code softmax(W_l h_l / T) + b_l} weighs
 * all adapters, in all linears of the layer; h_l is what the layer's q, k and v read. W and b are
 * learnt from a few hundred samples of one task, everything else frozen.
 *
 * @param gates of each layer; null where no adapter acts
 */
public record LoraFlow(List<LayerGate> gates) implements Router.Weighing {
  /** The router's name. */
  public static final String NAME = "lora-flow";

  public LoraFlow {
    gates = Collections.unmodifiableList(gates);
  }

  @Override
  public String name() {
    return NAME;
  }

  @Override
  public Optional<List<LayerGate>> layerGates() {
    return Optional.of(gates);
  }

  @Override
  public NDArray weights(GatedLinear linear, NDArray x, ForwardContext context) {
    var gate = gates.get(linear.layer());
    if (gate == null) { // whatever the weights, nothing is added
      return Ops.zeros(x.getManager(), Dtype.F32, x.getShape().get(0), linear.bank().size());
    }
    var input =
        context
            .layerInput()
            .orElseThrow(() -> new IllegalStateException(NAME + " needs a decoder layer"));
    var h = input.reshape(-1, gate.weight().getShape().get(1));
    var logits = Ops.cast(Ops.linear(h, gate.weight(), null), Dtype.F32);
    double temperature = context.routing().temperature();
    return Ops.softmax(temperature == 1 ? logits : Ops.scale(logits, 1 / temperature))
        .add(gate.bias());
  }
}
