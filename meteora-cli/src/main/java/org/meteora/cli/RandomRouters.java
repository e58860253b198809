package org.meteora.cli;

import java.util.List;
import java.util.Random;
import org.meteora.model.Llama;
import org.meteora.model.RandomLlama;
import org.meteora.moe.Router;
import org.meteora.router.LoraFlow;
import org.meteora.router.Phatgoose;
import org.meteora.router.Routers;
import org.meteora.tensor.Dtype;

/** Routers over random models; those that are trained have random values. */
final class RandomRouters {
  private RandomRouters() {}

  /**
   * @param name of {@link Routers#NAMES}
   */
  static Router of(String name, Llama model, List<String> adapters) {
    return switch (name) {
      case "phatgoose" ->
          new Phatgoose(
              model,
              (adapter, linear) -> {
                var random = new Random(adapter);
                var v = new float[(int) linear.weight().getShape().get(1)];
                for (int i = 0; i < v.length; i++) {
                  v[i] = (float) random.nextGaussian();
                }
                return v;
              });
      case LoraFlow.NAME ->
          new LoraFlow(
              model.layers().stream()
                  .map(
                      layer ->
                          new LoraFlow.LayerGate(
                              RandomLlama.normal(
                                  model.manager(),
                                  model.dtype(),
                                  0.02,
                                  adapters.size(),
                                  model.config().hiddenSize()),
                              RandomLlama.normal(
                                  model.manager(), Dtype.F32, 0.02, adapters.size())))
                  .toList());
      default -> Routers.of(name, model, adapters);
    };
  }
}
