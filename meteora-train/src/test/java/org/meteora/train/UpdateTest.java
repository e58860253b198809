package org.meteora.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import ai.djl.Device;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.LinkedHashMap;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Ops;
import org.meteora.train.optim.AdamW;
import org.meteora.train.optim.FlatParameters;

/** Rates and clipping of gates and adapters. */
class UpdateTest {
  /** In the order of a buffer whose gates do not lie together: two gates and two adapters. */
  private static LinkedHashMap<String, NDArray> tensors(NDManager manager) {
    var result = new LinkedHashMap<String, NDArray>();
    for (var name : new String[] {"x.moe_gate", "x.lora_A", "y.moe_gate", "y.lora_A"}) {
      result.put(name, manager.zeros(Ops.shape(2, 2)));
    }
    return result;
  }

  /** After one step AdamW has moved by the rate against the gradient's sign; m is 0.1 clip g. */
  private static void step(Map<String, Object> settings, double[] rates, double[] clip) {
    var options = new LinkedHashMap<String, Object>(settings);
    options.putAll(Map.of("max_steps", 10, "warmup_ratio", 0, "weight_decay", 0));
    var config = TrainConfig.meteora(Map.of(), options);
    try (var manager = Devices.newManager(Device.cpu());
        var parameters = new FlatParameters(manager, tensors(manager));
        var optimizer = new AdamW(parameters, 0)) {
      var gradients = new float[] {3, 3, 3, 3, 4, 4, 4, 4, 3, 3, 3, 3, 4, 4, 4, 4};
      Ops.copy(parameters.gradients(), manager.create(gradients));
      double norm = optimizer.gradientNorm();
      assertThat(norm).isCloseTo(Math.sqrt(8 * 9 + 8 * 16), within(1e-4));
      new Update(config, parameters, config.first(1, 1)).apply(optimizer, 0, norm);
      var values = parameters.values().toFloatArray();
      var means = optimizer.mean().toFloatArray();
      for (int i = 0; i < 16; i++) {
        int kind = i / 4 % 2;
        assertThat((double) values[i]).isCloseTo(-rates[kind], within(1e-3 * rates[kind]));
        assertThat((double) means[i]).isCloseTo(0.1 * clip[kind] * gradients[i], within(1e-4));
      }
    }
  }

  @Test
  void thePaperHasOneRateAndOneNorm() {
    double clip = 0.3 / Math.sqrt(200);
    step(Map.of("recipe", "paper"), new double[] {5e-4, 5e-4}, new double[] {clip, clip});
  }

  @Test
  void gatesAndAdaptersHaveTheirOwn() {
    step(
        Map.of(
            "train",
            "all",
            "learning_rate",
            1e-2,
            "adapter_learning_rate",
            1e-3,
            "max_grad_norm",
            0,
            "adapter_max_grad_norm",
            2),
        new double[] {1e-2, 1e-3},
        new double[] {1, 2 / Math.sqrt(128)});
  }
}
