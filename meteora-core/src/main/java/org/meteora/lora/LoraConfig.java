package org.meteora.lora;

import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.regex.Pattern;
import java.util.regex.PatternSyntaxException;
import org.meteora.UserException;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Jsonl;
import org.meteora.nn.Projection;

/**
 * The settings of a LoRA adapter, as PEFT keeps them in {@code adapter_config.json}.
 *
 * @param rank r
 * @param alpha lora_alpha
 * @param dropout on the adapter's input, in training
 * @param targetModules names such as {@code q_proj}
 * @param rsLora scale by {@code alpha / sqrt(r)} instead of {@code alpha / r}
 * @param rankPattern other ranks, by module path or its end
 * @param alphaPattern other alphas, likewise
 * @param layersToTransform decoder layers that get the adapter; empty: all
 */
public record LoraConfig(
    int rank,
    double alpha,
    double dropout,
    Set<String> targetModules,
    boolean rsLora,
    Map<String, Integer> rankPattern,
    Map<String, Double> alphaPattern,
    Set<Integer> layersToTransform) {
  /** An adapter of one rank on the given modules of the given layers (empty: all). */
  public static LoraConfig of(
      int rank,
      double alpha,
      double dropout,
      Set<String> targets,
      boolean rsLora,
      Set<Integer> layers) {
    return new LoraConfig(
        rank, alpha, dropout, Set.copyOf(targets), rsLora, Map.of(), Map.of(), Set.copyOf(layers));
  }

  /**
   * Reads {@code adapter_config.json} of an adapter's folder.
   *
   * @throws UserException when it is missing, is no LoRA, or uses a variant that changes the maths
   *     (DoRA, LoRA biases, fan_in_fan_out, modules trained whole)
   */
  public static LoraConfig read(Path folder) {
    var file = folder.resolve("adapter_config.json");
    if (!Files.isRegularFile(file)) {
      throw new UserException("no adapter_config.json in " + folder + ": it is not a PEFT adapter");
    }
    var node = Jsonl.readFile(file);
    var type = node.path("peft_type").asText("LORA");
    if (!type.equals("LORA")) {
      throw new UserException(file + ": peft_type is " + type + ", only LORA can be embedded");
    }
    for (var variant : new String[] {"use_dora", "fan_in_fan_out", "lora_bias"}) {
      if (node.path(variant).asBoolean(false)) {
        throw new UserException(file + ": " + variant + " is not supported");
      }
    }
    if (!node.path("bias").asText("none").equals("none")) {
      throw new UserException(
          file + ": bias \"" + node.path("bias").asText() + "\" is not supported, only \"none\"");
    }
    if (!node.path("modules_to_save").isEmpty()) {
      throw new UserException(
          file
              + ": modules_to_save "
              + node.path("modules_to_save")
              + " is not supported: only LoRA on the seven projections can be embedded");
    }
    int rank = node.path("r").asInt(0);
    if (rank < 1 || !node.path("lora_alpha").isNumber()) {
      throw new UserException(file + ": r and lora_alpha must be positive numbers");
    }
    var targets = new TreeSet<String>();
    var modules = node.path("target_modules");
    if (modules.isTextual() && modules.asText().equals("all-linear")) {
      targets.addAll(Projection.NAMES);
    } else if (modules.isTextual()) {
      addMatching(file, modules.asText(), targets);
    } else {
      for (var module : modules) {
        var name = module.asText();
        targets.add(name.substring(name.lastIndexOf('.') + 1));
      }
    }
    var ranks = new LinkedHashMap<String, Integer>();
    node.path("rank_pattern")
        .properties()
        .forEach(e -> ranks.put(e.getKey(), e.getValue().asInt()));
    var alphas = new LinkedHashMap<String, Double>();
    node.path("alpha_pattern")
        .properties()
        .forEach(e -> alphas.put(e.getKey(), e.getValue().asDouble()));
    var layers = new TreeSet<Integer>();
    var transformed = node.path("layers_to_transform");
    if (transformed.isInt()) {
      layers.add(transformed.asInt());
    } else {
      transformed.forEach(layer -> layers.add(layer.asInt()));
    }
    return new LoraConfig(
        rank,
        node.path("lora_alpha").asDouble(),
        node.path("lora_dropout").asDouble(0),
        targets,
        node.path("use_rslora").asBoolean(false),
        ranks,
        alphas,
        layers);
  }

  private static void addMatching(Path file, String regex, Set<String> targets) {
    Pattern pattern;
    try {
      pattern = Pattern.compile(regex);
    } catch (PatternSyntaxException e) {
      throw new UserException(file + ": target_modules is not a regular expression: " + regex);
    }
    for (var projection : Projection.NAMES) {
      for (var parent : new String[] {"self_attn", "mlp"}) {
        if (pattern.matcher("model.layers.0." + parent + "." + projection).matches()) {
          targets.add(projection);
        }
      }
    }
  }

  /** Whether the adapter has a part on this projection ({@code q_proj}, …) of this layer. */
  public boolean targets(int layer, String projection) {
    return targetModules.contains(projection)
        && (layersToTransform.isEmpty() || layersToTransform.contains(layer));
  }

  /** The rank on a module such as {@code model.layers.0.self_attn.q_proj}. */
  public int rankOf(String module) {
    return matching(rankPattern, module, rank);
  }

  /** The factor on the product of B and A for a module whose adapter has the rank {@code rank}. */
  public double scaleOf(String module, int rank) {
    double moduleAlpha = matching(alphaPattern, module, alpha);
    return rsLora ? moduleAlpha / Math.sqrt(rank) : moduleAlpha / rank;
  }

  /**
   * PEFT's rule: the first pattern that is the module's path or its end, dots and all, possibly as
   * a regular expression.
   */
  private static <T> T matching(Map<String, T> patterns, String module, T otherwise) {
    for (var entry : patterns.entrySet()) {
      if (module.equals(entry.getKey())
          || module.endsWith("." + entry.getKey())
          || matches(entry.getKey(), module)) {
        return entry.getValue();
      }
    }
    return otherwise;
  }

  private static boolean matches(String pattern, String module) {
    try {
      return Pattern.compile("(.*\\.)?(" + pattern + ")$").matcher(module).matches();
    } catch (PatternSyntaxException e) {
      return false;
    }
  }

  /** Writes {@code adapter_config.json} as PEFT reads it. */
  public void write(Path folder, String baseModelName) {
    JsonNode json =
        Jsonl.JSON
            .createObjectNode()
            .put("base_model_name_or_path", baseModelName)
            .put("bias", "none")
            .put("fan_in_fan_out", false)
            .put("inference_mode", true)
            .put("init_lora_weights", true)
            .put("lora_alpha", alpha)
            .put("lora_dropout", dropout)
            .put("peft_type", "LORA")
            .put("r", rank)
            .put("task_type", "CAUSAL_LM")
            .put("use_dora", false)
            .put("use_rslora", rsLora)
            .<com.fasterxml.jackson.databind.node.ObjectNode>set(
                "target_modules", Jsonl.JSON.valueToTree(new TreeSet<>(targetModules)))
            .<com.fasterxml.jackson.databind.node.ObjectNode>set(
                "layers_to_transform",
                layersToTransform.isEmpty()
                    ? Jsonl.JSON.nullNode()
                    : Jsonl.JSON.valueToTree(new TreeSet<>(layersToTransform)))
            .<com.fasterxml.jackson.databind.node.ObjectNode>set(
                "rank_pattern", Jsonl.JSON.valueToTree(rankPattern))
            .set("alpha_pattern", Jsonl.JSON.valueToTree(alphaPattern));
    AtomicFiles.writeString(folder.resolve("adapter_config.json"), json.toPrettyString() + "\n");
  }
}
