package org.meteora.model;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.function.BiFunction;
import org.meteora.lora.AdapterBank;
import org.meteora.model.llama.LlamaConfig;
import org.meteora.moe.MoeLinear;
import org.meteora.moe.RoutingControl;
import org.meteora.tensor.Dtype;

/** Puts a {@link Llama} together from named weights. */
public final class LlamaFactory {
  private LlamaFactory() {}

  /** Where weights come from: a file, or random numbers for a benchmark. */
  @FunctionalInterface
  public interface Weights {
    /**
     * @param name Hugging Face's, such as {@code model.layers.0.self_attn.q_proj.weight}
     * @param shape expected
     * @return a tensor in the model's dtype on its device, owned by the model's manager
     */
    NDArray get(String name, long... shape);
  }

  /**
   * @param manager owns parameters and tables
   * @param banks adapters of a layer's module (0…6), or null for none
   * @param dropout on the adapters' input in training
   */
  public static Llama build(
      LlamaConfig config,
      NDManager manager,
      Dtype dtype,
      Weights weights,
      BiFunction<Integer, Integer, AdapterBank> banks,
      RoutingControl control,
      double dropout) {
    long hidden = config.hiddenSize();
    var rotary = new RotaryEmbedding(manager, config, dtype);
    var embedding = weights.get("model.embed_tokens.weight", config.vocabSize(), hidden);
    var layers = new ArrayList<DecoderLayer>();
    for (int layer = 0; layer < config.numHiddenLayers(); layer++) {
      var linears = new MoeLinear[7];
      for (int module = 0; module < 7; module++) {
        var path = LlamaConfig.projectionPath(layer, module);
        var shape = config.projectionShape(module);
        linears[module] =
            new MoeLinear(
                weights.get(path + ".weight", shape),
                config.hasBias(module) ? weights.get(path + ".bias", shape[0]) : null,
                banks.apply(layer, module),
                control,
                dropout,
                layer,
                module);
      }
      var prefix = "model.layers." + layer + ".";
      layers.add(
          new DecoderLayer(
              rotary,
              new RmsNorm(
                  weights.get(prefix + "input_layernorm.weight", hidden), config.rmsNormEps()),
              new Attention(config, layer, rotary, linears[0], linears[1], linears[2], linears[3]),
              new RmsNorm(
                  weights.get(prefix + "post_attention_layernorm.weight", hidden),
                  config.rmsNormEps()),
              new Mlp(linears[4], linears[5], linears[6])));
    }
    var norm = new RmsNorm(weights.get("model.norm.weight", hidden), config.rmsNormEps());
    var head =
        config.tieWordEmbeddings()
            ? embedding
            : weights.get("lm_head.weight", config.vocabSize(), hidden);
    return new Llama(config, manager, embedding, layers, norm, head, rotary, control);
  }
}
