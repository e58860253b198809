package org.meteora.model;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.EnumMap;
import org.meteora.lora.AdapterBank;
import org.meteora.moe.GatedLinear;
import org.meteora.nn.Projection;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

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

    /**
     * Whether there is a head of its own, though the configuration says that it is the embedding.
     */
    default boolean hasOwnHead() {
      return false;
    }

    /**
     * Copies a stretch of a weight's numbers, row-major.
     *
     * @param target {@code (n)}, on any device
     * @param from the first number
     * @param shape of the whole weight
     */
    default void read(NDArray target, String name, long from, long... shape) {
      try (var whole = get(name, shape);
          var flat = whole.reshape(-1);
          var part = Ops.narrow(flat, 0, from, target.getShape().size())) {
        Ops.copy(target, part);
      }
    }

    /** Where what {@link #get} gave is while the model runs. */
    default FrozenWeights frozen() {
      return FrozenWeights.RESIDENT;
    }
  }

  /** Where adapters come from. */
  @FunctionalInterface
  public interface Banks {
    /** The adapters of a layer's projection; null for none. */
    AdapterBank get(int layer, Projection projection);
  }

  /**
   * @param manager owns parameters and tables
   * @param banks the adapters of every projection
   * @param backend what computes it
   * @param dropout on the adapters' input in training
   */
  public static Llama build(
      Architecture config,
      NDManager manager,
      Dtype dtype,
      Weights weights,
      Banks banks,
      Backend backend,
      double dropout) {
    long hidden = config.hiddenSize();
    var rotary = new RotaryEmbedding(manager, config, dtype);
    var embedding = weights.get("model.embed_tokens.weight", config.vocabSize(), hidden);
    var layers = new ArrayList<DecoderLayer>();
    for (int layer = 0; layer < config.numHiddenLayers(); layer++) {
      var linears = new EnumMap<Projection, GatedLinear>(Projection.class);
      for (var module : Projection.values()) {
        var path = module.path(layer);
        var shape = config.shape(module);
        linears.put(
            module,
            new GatedLinear(
                weights.get(path + ".weight", shape),
                config.biased().contains(module) ? weights.get(path + ".bias", shape[0]) : null,
                banks.get(layer, module),
                dropout,
                backend,
                layer,
                module));
      }
      var prefix = "model.layers." + layer + ".";
      layers.add(
          new DecoderLayer(
              new RmsNorm(
                  weights.get(prefix + "input_layernorm.weight", hidden), config.rmsNormEps()),
              new Attention(config, layer, linears, backend),
              new RmsNorm(
                  weights.get(prefix + "post_attention_layernorm.weight", hidden),
                  config.rmsNormEps()),
              new Mlp(linears, backend),
              linears.values()));
    }
    var norm = new RmsNorm(weights.get("model.norm.weight", hidden), config.rmsNormEps());
    var head =
        config.tieWordEmbeddings() && !weights.hasOwnHead()
            ? embedding
            : weights.get("lm_head.weight", config.vocabSize(), hidden);
    return new Llama(
        config, manager, embedding, layers, norm, head, rotary, backend, weights.frozen());
  }
}
