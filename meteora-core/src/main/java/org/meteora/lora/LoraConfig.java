package org.meteora.lora;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalInt;
import java.util.Set;
import java.util.TreeSet;
import java.util.regex.Pattern;
import org.meteora.UserException;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Jsonl;

/**
 * The settings of a LoRA adapter, as PEFT keeps them in {@code adapter_config.json}. Every key of
 * PEFT 0.21 is honoured, known to change nothing, or refused by name; so is every other key, unless
 * it says nothing.
 *
 * @param dropout on the adapter's input, in training
 * @param excluded modules that are not, though they are targets
 * @param rsLora scale by {@code alpha / sqrt(r)} instead of {@code alpha / r}
 * @param rankPattern other ranks, by a pattern for the end of the module's path
 * @param alphaPattern other alphas, likewise
 * @param layersToTransform decoder layers that get the adapter; empty: all
 * @param modulesToSave modules that were trained whole
 */
public record LoraConfig(
    int rank,
    double alpha,
    double dropout,
    Modules targets,
    Modules excluded,
    boolean rsLora,
    Map<String, Integer> rankPattern,
    Map<String, Double> alphaPattern,
    Set<Integer> layersToTransform,
    Set<String> modulesToSave) {
  private static final Pattern LAYER = Pattern.compile("(?:^|\\.)layers\\.(\\d{1,9})\\.");

  /**
   * Modules by their names, or ends of their paths, or by one pattern for the whole path.
   *
   * @param pattern in Python's syntax; null where names say it
   */
  public record Modules(Set<String> names, String pattern) {
    static final Modules NONE = new Modules(Set.of(), null);

    /** Whether a module is one of these; empty where the pattern is none that is understood. */
    Optional<Boolean> contains(String module) {
      if (pattern != null) {
        return ModulePattern.compile(pattern).map(each -> each.matches(module));
      }
      return Optional.of(
          names.stream().anyMatch(each -> module.equals(each) || module.endsWith("." + each)));
    }
  }

  /** An adapter of one rank on the given modules of the given layers (empty: all). */
  public static LoraConfig of(
      int rank,
      double alpha,
      double dropout,
      Set<String> targets,
      boolean rsLora,
      Set<Integer> layers) {
    return new LoraConfig(
        rank,
        alpha,
        dropout,
        new Modules(Set.copyOf(targets), null),
        Modules.NONE,
        rsLora,
        Map.of(),
        Map.of(),
        Set.copyOf(layers),
        Set.of());
  }

  /**
   * Reads {@code adapter_config.json} of an adapter's folder.
   *
   * @throws UserException when it is missing, is no LoRA, or a key or its value says that the
   *     adapter computes something else than is computed here
   */
  public static LoraConfig read(Path folder) {
    var file = folder.resolve("adapter_config.json");
    if (!Files.isRegularFile(file)) {
      throw new UserException("no adapter_config.json in " + folder + ": it is not a PEFT adapter");
    }
    return new LoraConfigReader(file, Jsonl.readFile(file)).read();
  }

  /** Names of modules, where names and no pattern say what is adapted. */
  public Set<String> targetModules() {
    return targets.names();
  }

  /** Whether the adapter has a part on this projection ({@code q_proj}, …) of this layer. */
  public boolean targets(int layer, String projection) {
    return targets.names().contains(projection)
        && (layersToTransform.isEmpty() || layersToTransform.contains(layer));
  }

  /**
   * Whether PEFT adapts a module such as {@code model.layers.0.self_attn.q_proj}; empty where a
   * pattern says it that is not understood here.
   */
  public Optional<Boolean> adapts(String module) {
    var target = targets.contains(module);
    var exclude = excluded.contains(module);
    if (target.isEmpty() || exclude.isEmpty()) {
      return Optional.empty();
    }
    boolean layer = true;
    if (!layersToTransform.isEmpty() && targets.pattern() == null) {
      var found = LAYER.matcher(module);
      layer = found.find() && layersToTransform.contains(Integer.parseInt(found.group(1)));
    }
    return Optional.of(target.get() && !exclude.get() && layer);
  }

  /**
   * The rank on a module such as {@code model.layers.0.self_attn.q_proj}; empty where a pattern
   * says it that is not understood here.
   */
  public OptionalInt rankOf(String module) {
    for (var entry : rankPattern.entrySet()) {
      var pattern = ModulePattern.compile(entry.getKey());
      if (pattern.isEmpty()) {
        return OptionalInt.empty();
      }
      if (pattern.get().matchesEnd(module)) {
        return OptionalInt.of(entry.getValue());
      }
    }
    return OptionalInt.of(rank);
  }

  /** The factor on the product of B and A for a module whose adapter has the rank {@code rank}. */
  public double scaleOf(String module, int rank) {
    double moduleAlpha =
        alphaPattern.entrySet().stream()
            .filter(each -> ModulePattern.compile(each.getKey()).orElseThrow().matchesEnd(module))
            .findFirst()
            .map(Map.Entry::getValue)
            .orElse(alpha);
    return rsLora ? moduleAlpha / Math.sqrt(rank) : moduleAlpha / rank;
  }

  /** Writes {@code adapter_config.json} as PEFT reads it. */
  public void write(Path folder, String baseModelName) {
    var json = new LinkedHashMap<String, Object>();
    json.put("base_model_name_or_path", baseModelName);
    json.put("bias", "none");
    json.put("fan_in_fan_out", false);
    json.put("inference_mode", true);
    json.put("init_lora_weights", true);
    json.put("lora_alpha", alpha);
    json.put("lora_dropout", dropout);
    json.put("peft_type", "LORA");
    json.put("r", rank);
    json.put("task_type", "CAUSAL_LM");
    json.put("use_dora", false);
    json.put("use_rslora", rsLora);
    json.put("target_modules", new TreeSet<>(targets.names()));
    json.put(
        "layers_to_transform",
        layersToTransform.isEmpty() ? null : new TreeSet<>(layersToTransform));
    json.put("rank_pattern", rankPattern);
    json.put("alpha_pattern", alphaPattern);
    AtomicFiles.writeString(folder.resolve("adapter_config.json"), Jsonl.pretty(json));
  }
}
