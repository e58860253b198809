package org.meteora.train;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Random;
import org.meteora.backend.Backends;
import org.meteora.io.Jsonl;
import org.meteora.lora.AdapterBank;
import org.meteora.model.FrozenWeights;
import org.meteora.model.Llama;
import org.meteora.model.LlamaFactory;
import org.meteora.model.llama.LlamaConfig;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardMode;
import org.meteora.moe.RoutingSettings;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;
import org.meteora.train.optim.FlatParameters;

/** A model of random numbers for tests that need no reference data: unequal ranks, any dtype. */
final class Tiny implements AutoCloseable {
  static final int[] RANKS = {2, 3, 1};
  final NDManager manager = Devices.newManager(ai.djl.Device.cpu());
  final Map<String, NDArray> parameters = new LinkedHashMap<>();
  final Llama llama;

  /** A training pass with k adapters a token. */
  static ForwardContext context(int topK, ForwardMode mode) {
    return ForwardContext.inference(new RoutingSettings(topK, 1), Flags.of(mode)).forTraining(true);
  }

  static {
    org.meteora.tensor.LibTorch.load();
    ai.djl.pytorch.jni.JniUtils.setNumThreads(1);
  }

  Tiny(Dtype dtype, double dropout, long seed) {
    this(dtype, dropout, seed, FrozenWeights.RESIDENT);
  }

  /**
   * @param frozen asked by every pass for what it needs; all is there
   */
  Tiny(Dtype dtype, double dropout, long seed, FrozenWeights frozen) {
    try {
      var json =
          Jsonl.JSON.readTree(
              """
              {"vocab_size": 23, "hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 2,
               "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6}\
              """);
      var config = LlamaConfig.parse(json, "test");
      var random = new Random(seed);
      llama =
          LlamaFactory.build(
              config,
              manager,
              dtype,
              new LlamaFactory.Weights() {
                @Override
                public NDArray get(String name, long... shape) {
                  return name.contains("norm")
                      ? ones(dtype, shape)
                      : gaussian(random, dtype, 0.4, shape);
                }

                @Override
                public FrozenWeights frozen() {
                  return frozen;
                }
              },
              (layer, module) -> {
                var shape = config.shape(module);
                var path = module.path(layer);
                var bank =
                    new AdapterBank(
                        gaussian(random, dtype, 0.5, RANKS.length, shape[1]),
                        gaussian(random, dtype, 0.5, 6, shape[1]),
                        gaussian(random, dtype, 0.5, shape[0], 6),
                        RANKS,
                        new double[] {1, 0.5, 2});
                parameters.put(path + ".moe_gate", bank.gate());
                parameters.put(path + ".lora_A", bank.loraA());
                parameters.put(path + ".lora_B", bank.loraB());
                return bank;
              },
              Backends.of(manager, dtype),
              dropout);
    } catch (com.fasterxml.jackson.core.JsonProcessingException e) {
      throw new IllegalStateException(e);
    }
  }

  private NDArray ones(Dtype dtype, long... shape) {
    return Ops.zeros(manager, dtype, shape).add(1);
  }

  private NDArray gaussian(Random random, Dtype dtype, double scale, long... shape) {
    int size = (int) Ops.shape(shape).size();
    var values = new float[size];
    for (int i = 0; i < size; i++) {
      values[i] = (float) (random.nextGaussian() * scale);
    }
    var result = Ops.empty(manager, dtype, shape);
    try (var host = Devices.newManager(ai.djl.Device.cpu())) {
      Ops.copy(result, host.create(values, Ops.shape(shape)));
    }
    return result;
  }

  @Override
  public void close() {
    manager.close();
  }

  /** A parameter's gradient in its own shape. */
  static NDArray gradient(FlatParameters parameters, String name) {
    var slot =
        parameters.slots().stream().filter(each -> each.name().equals(name)).findFirst().get();
    var shape = slot.shape().stream().mapToLong(Long::longValue).toArray();
    return Ops.narrow(parameters.gradients(), 0, slot.offset(), slot.size()).reshape(shape);
  }
}
