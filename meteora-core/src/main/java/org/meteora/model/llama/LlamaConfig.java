package org.meteora.model.llama;

import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Files;
import java.nio.file.Path;
import org.meteora.UserException;
import org.meteora.io.Jsonl;

/**
 * The shape of a Llama, as in Hugging Face's {@code config.json}.
 *
 * @param headDim size of one attention head
 * @param tieWordEmbeddings the output head is the embedding
 * @param raw the whole {@code config.json}
 */
public record LlamaConfig(
    int vocabSize,
    int hiddenSize,
    int intermediateSize,
    int numHiddenLayers,
    int numAttentionHeads,
    int numKeyValueHeads,
    int headDim,
    int maxPositionEmbeddings,
    double rmsNormEps,
    boolean attentionBias,
    boolean mlpBias,
    boolean tieWordEmbeddings,
    RopeConfig rope,
    JsonNode raw) {

  /**
   * Rotary position embedding.
   *
   * @param type {@code default}, {@code linear} or {@code llama3}
   * @param theta base of the frequencies
   * @param factor stretches positions; 1 for {@code default}
   * @param lowFreqFactor llama3 only
   * @param highFreqFactor llama3 only
   * @param originalMaxPositionEmbeddings llama3 only
   */
  public record RopeConfig(
      String type,
      double theta,
      double factor,
      double lowFreqFactor,
      double highFreqFactor,
      int originalMaxPositionEmbeddings) {}

  /**
   * Reads {@code config.json} of a model folder.
   *
   * @throws UserException when it is missing, is not a Llama, or a value is missing or impossible
   */
  public static LlamaConfig read(Path folder) {
    if (!Files.isDirectory(folder)) {
      throw new UserException("no such model folder: " + folder);
    }
    var file = folder.resolve("config.json");
    if (!Files.isRegularFile(file)) {
      throw new UserException("no config.json in the model folder " + folder);
    }
    return parse(Jsonl.readFile(file), file.toString());
  }

  /** Reads the JSON itself; {@code where} goes into messages. */
  public static LlamaConfig parse(JsonNode node, String where) {
    var type = node.path("model_type").asText("llama");
    if (!type.equals("llama")) {
      throw new UserException(where + ": model_type is \"" + type + "\", only llama is supported");
    }
    var activation = node.path("hidden_act").asText("silu");
    if (!activation.equals("silu")) {
      throw new UserException(
          where + ": hidden_act is \"" + activation + "\", only silu is supported");
    }
    int hidden = positive(node, "hidden_size", where);
    int heads = positive(node, "num_attention_heads", where);
    int kvHeads =
        node.hasNonNull("num_key_value_heads")
            ? positive(node, "num_key_value_heads", where)
            : heads;
    int headDim = node.hasNonNull("head_dim") ? positive(node, "head_dim", where) : hidden / heads;
    if (heads % kvHeads != 0
        || headDim % 2 != 0
        || (!node.hasNonNull("head_dim") && hidden % heads != 0)) {
      throw new UserException(
          where
              + ": hidden_size "
              + hidden
              + ", num_attention_heads "
              + heads
              + ", num_key_value_heads "
              + kvHeads
              + " and head_dim "
              + headDim
              + " do not fit together");
    }
    int maxPositions =
        node.hasNonNull("max_position_embeddings")
            ? positive(node, "max_position_embeddings", where)
            : 2048;
    return new LlamaConfig(
        positive(node, "vocab_size", where),
        hidden,
        positive(node, "intermediate_size", where),
        positive(node, "num_hidden_layers", where),
        heads,
        kvHeads,
        headDim,
        maxPositions,
        node.hasNonNull("rms_norm_eps") ? number(node, "rms_norm_eps", where) : 1e-6,
        node.path("attention_bias").asBoolean(false),
        node.path("mlp_bias").asBoolean(false),
        node.path("tie_word_embeddings").asBoolean(false),
        rope(node, where, maxPositions),
        node);
  }

  private static int positive(JsonNode node, String key, String where) {
    var value = node.get(key);
    if (value == null || !value.isInt() || value.intValue() < 1) {
      throw new UserException(
          where
              + ": "
              + key
              + " must be a positive number"
              + (value == null ? ", it is missing" : ", it is " + value));
    }
    return value.intValue();
  }

  /**
   * Both spellings: {@code rope_theta} with {@code rope_scaling}, and transformers 5's {@code
   * rope_parameters}.
   */
  private static RopeConfig rope(JsonNode node, String where, int maxPositions) {
    JsonNode settings =
        node.hasNonNull("rope_parameters")
            ? node.get("rope_parameters")
            : node.path("rope_scaling");
    var holder = settings.hasNonNull("rope_theta") ? settings : node;
    double theta = holder.hasNonNull("rope_theta") ? number(holder, "rope_theta", where) : 10000;
    var type = settings.path("rope_type").asText(settings.path("type").asText("default"));
    return switch (type) {
      case "default" -> new RopeConfig(type, theta, 1, 1, 1, maxPositions);
      case "linear" ->
          new RopeConfig(type, theta, number(settings, "factor", where), 1, 1, maxPositions);
      case "llama3" ->
          new RopeConfig(
              type,
              theta,
              number(settings, "factor", where),
              number(settings, "low_freq_factor", where),
              number(settings, "high_freq_factor", where),
              (int) number(settings, "original_max_position_embeddings", where));
      default ->
          throw new UserException(
              where
                  + ": rope type \""
                  + type
                  + "\" is not supported; known are default, linear, llama3");
    };
  }

  private static double number(JsonNode node, String key, String where) {
    if (!node.path(key).isNumber() || !(node.path(key).asDouble() > 0)) {
      throw new UserException(where + ": " + key + " must be a number above 0");
    }
    return node.path(key).asDouble();
  }

  /** Output and input size of a projection, by its index 0…6 (q, k, v, o, gate, up, down). */
  public long[] projectionShape(int module) {
    long q = (long) numAttentionHeads * headDim;
    long kv = (long) numKeyValueHeads * headDim;
    return switch (module) {
      case 0 -> new long[] {q, hiddenSize};
      case 1, 2 -> new long[] {kv, hiddenSize};
      case 3 -> new long[] {hiddenSize, q};
      case 4, 5 -> new long[] {intermediateSize, hiddenSize};
      case 6 -> new long[] {hiddenSize, intermediateSize};
      default -> throw new IllegalArgumentException("no projection " + module);
    };
  }

  /** Path of a projection, such as {@code model.layers.0.self_attn.q_proj}. */
  public static String projectionPath(int layer, int module) {
    return "model.layers."
        + layer
        + (module < 4 ? ".self_attn." : ".mlp.")
        + org.meteora.lora.LoraConfig.ALL_PROJECTIONS.get(module);
  }

  /** Whether a projection has a bias. */
  public boolean hasBias(int module) {
    return module < 4 ? attentionBias : mlpBias;
  }
}
