package org.meteora.model.llama;

import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Locale;
import java.util.Set;
import java.util.stream.Collectors;
import org.meteora.UserException;
import org.meteora.io.Folders;
import org.meteora.io.Jsonl;
import org.meteora.model.Architecture;
import org.meteora.nn.Projection;

/** Reads Hugging Face's {@code config.json} of a Llama. */
public final class LlamaConfig {
  private static final String GGUF =
      " is a GGUF file, the quantised form of llama.cpp; the model's original Hugging Face folder,"
          + " with config.json, tokenizer.json and model.safetensors, is needed";

  private LlamaConfig() {}

  /**
   * Reads {@code config.json} of a model folder.
   *
   * @throws UserException when it is missing, is not a Llama, or a value is missing or impossible
   */
  public static Architecture read(Path folder) {
    if (Files.isRegularFile(folder)) {
      throw new UserException(
          folder
              + (folder.toString().toLowerCase(Locale.ROOT).endsWith(".gguf")
                  ? GGUF
                  : " is a file: a Hugging Face folder with config.json, tokenizer.json and"
                      + " model.safetensors was expected"));
    }
    if (!Files.isDirectory(folder)) {
      throw new UserException(
          "no such model folder: " + folder + "; \"meteora download\" fetches models");
    }
    var file = folder.resolve("config.json");
    if (!Files.isRegularFile(file)) {
      requireNoGguf(folder);
      throw new UserException("no config.json in the model folder " + folder);
    }
    return parse(Jsonl.readFile(file), file.toString());
  }

  private static void requireNoGguf(Path folder) {
    for (var each : Folders.entries(folder)) {
      if (each.toString().matches("(?i).*\\.gguf")) {
        throw new UserException(each + GGUF);
      }
    }
  }

  /** Reads the JSON itself; {@code where} goes into messages. */
  public static Architecture parse(JsonNode node, String where) {
    if (!node.isObject()) {
      throw new UserException(where + ": a JSON object was expected");
    }
    requireOnly(node, "model_type", "llama", where);
    requireOnly(node, "hidden_act", "silu", where);
    if (node.hasNonNull("quantization_config")) {
      throw new UserException(
          where
              + ": quantization_config: quantised weights are not supported, only f32, f16, bf16");
    }
    int hidden = positive(node, "hidden_size", where);
    int heads = positive(node, "num_attention_heads", where);
    int kvHeads = positive(node, "num_key_value_heads", heads, where);
    int headDim = positive(node, "head_dim", hidden / heads, where);
    if (heads % kvHeads != 0
        || headDim % 2 != 0
        || (!node.hasNonNull("head_dim") && hidden % heads != 0)) {
      throw new UserException(
          ("%s: hidden_size %s, num_attention_heads %s, num_key_value_heads %s and"
                  + " head_dim %s do not fit together")
              .formatted(where, hidden, heads, kvHeads, headDim));
    }
    int maxPositions = positive(node, "max_position_embeddings", 2048, where);
    return new Architecture(
        positive(node, "vocab_size", where),
        hidden,
        positive(node, "intermediate_size", where),
        positive(node, "num_hidden_layers", where),
        heads,
        kvHeads,
        headDim,
        maxPositions,
        node.hasNonNull("rms_norm_eps") ? number(node, "rms_norm_eps", where) : 1e-6,
        biased(node),
        node.path("tie_word_embeddings").asBoolean(false),
        rope(node, where, maxPositions),
        node);
  }

  private static void requireOnly(JsonNode node, String key, String value, String where) {
    var its = node.path(key).asText(value);
    if (!its.equals(value)) {
      throw new UserException("%s: %s is \"%s\", only %s is supported", where, key, its, value);
    }
  }

  private static Set<Projection> biased(JsonNode node) {
    boolean attention = node.path("attention_bias").asBoolean(false);
    boolean mlp = node.path("mlp_bias").asBoolean(false);
    return Arrays.stream(Projection.values())
        .filter(each -> each.inAttention() ? attention : mlp)
        .collect(Collectors.toUnmodifiableSet());
  }

  private static int positive(JsonNode node, String key, int otherwise, String where) {
    return node.hasNonNull(key) ? positive(node, key, where) : otherwise;
  }

  private static int positive(JsonNode node, String key, String where) {
    var value = node.get(key);
    if (value == null || !value.isInt() || value.intValue() < 1) {
      throw new UserException(
          "%s: %s must be a positive number%s"
              .formatted(where, key, value == null ? ", it is missing" : ", it is " + value));
    }
    return value.intValue();
  }

  /**
   * Both spellings: {@code rope_theta} with {@code rope_scaling}, and transformers 5's {@code
   * rope_parameters}.
   */
  private static Architecture.Rope rope(JsonNode node, String where, int maxPositions) {
    JsonNode settings =
        node.hasNonNull("rope_parameters")
            ? node.get("rope_parameters")
            : node.path("rope_scaling");
    var holder = settings.hasNonNull("rope_theta") ? settings : node;
    double theta = holder.hasNonNull("rope_theta") ? number(holder, "rope_theta", where) : 10000;
    var type = settings.path("rope_type").asText(settings.path("type").asText("default"));
    return switch (type) {
      case "default" -> new Architecture.Rope(type, theta, 1, 1, 1, maxPositions);
      case "linear" ->
          new Architecture.Rope(type, theta, number(settings, "factor", where), 1, 1, maxPositions);
      case "llama3" ->
          new Architecture.Rope(
              type,
              theta,
              number(settings, "factor", where),
              number(settings, "low_freq_factor", where),
              number(settings, "high_freq_factor", where),
              (int) number(settings, "original_max_position_embeddings", where));
      default ->
          throw new UserException(
              "%s: rope type \"%s\" is not supported; known are default, linear, llama3"
                  .formatted(where, type));
    };
  }

  private static double number(JsonNode node, String key, String where) {
    if (!node.path(key).isNumber()
        || !(node.path(key).asDouble() > 0)
        || !Double.isFinite(node.path(key).asDouble())) {
      throw new UserException(where + ": " + key + " must be a number above 0");
    }
    return node.path(key).asDouble();
  }
}
