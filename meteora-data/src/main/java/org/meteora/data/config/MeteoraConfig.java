package org.meteora.data.config;

import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.stream.Stream;
import org.meteora.UserException;
import org.meteora.io.CacheFolders;
import org.meteora.io.Texts;
import org.meteora.moe.Flags;

/**
 * The settings of {@code config.yaml}, each of which is a command-line option too.
 *
 * @param baseModelPath a Hugging Face Llama folder
 * @param meteoraCkptPath a MeteoRA checkpoint, folder or file
 * @param adapterDir PEFT folders by name
 * @param bigbenchDatasetDir sources of the BIG-bench tasks
 * @param targetDir where datasets are written and read
 * @param evalResultSaveDir where results go
 * @param routingTopK adapters that act on a token
 * @param routingTemperature {@code auto} or a number, checked where it is used
 * @param flags values of {@code MOELINEAR_…} flags, by their names
 * @param train the section {@code train:}, checked by the trainer
 */
public record MeteoraConfig(
    Optional<Path> baseModelPath,
    Optional<Path> meteoraCkptPath,
    Optional<Path> adapterDir,
    Path bigbenchDatasetDir,
    Path targetDir,
    Path evalResultSaveDir,
    Optional<Integer> routingTopK,
    Optional<String> routingTemperature,
    Map<String, String> flags,
    Map<String, Object> train) {

  /** The keys of {@code config.yaml}. */
  public static final List<String> KEYS =
      Stream.concat(
              Stream.of(
                  "base_model_path",
                  "meteora_ckpt_path",
                  "adapter_dir",
                  "bigbench_dataset_dir",
                  "target_dir",
                  "eval_result_save_dir",
                  "routing_top_k",
                  "routing_temperature",
                  "train"),
              Flags.NAMES.stream().map(MeteoraConfig::key))
          .toList();

  /** The key of a {@code MOELINEAR_…} flag. */
  private static String key(String flag) {
    return flag.toLowerCase(Locale.ROOT);
  }

  /** Nothing set but the defaults. */
  public static final MeteoraConfig DEFAULTS = of(Map.of(), "");

  /**
   * Reads a file. Relative paths in it are relative to the working folder, as in the Python
   * original.
   *
   * @throws UserException when it is missing, not YAML, not a map, or a key is unknown (naming the
   *     nearest)
   */
  public static MeteoraConfig read(Path file) {
    if (!Files.exists(file)) {
      throw new UserException("cannot read the config " + file + ": no such file");
    }
    return parse(Texts.read(file), file.toString());
  }

  /** Reads YAML text; {@code where} goes into messages. */
  public static MeteoraConfig parse(String text, String where) {
    var root = PlainYaml.load(text, where);
    if (root == null) {
      return DEFAULTS;
    }
    if (!(root instanceof Map<?, ?> map)) {
      throw new UserException(
          where + ": a map of keys and values was expected, such as \"target_dir: datasets\"");
    }
    var values = new LinkedHashMap<String, Object>();
    for (var entry : map.entrySet()) {
      var key = String.valueOf(entry.getKey());
      if (!KEYS.contains(key)) {
        throw new UserException(
            where + ": unknown key \"" + PlainYaml.shown(key) + "\"" + Nearest.hint(key, KEYS));
      }
      values.put(key, entry.getValue());
    }
    return of(values, where);
  }

  private static MeteoraConfig of(Map<String, Object> values, String where) {
    return new MeteoraConfig(
        path(values, "base_model_path", where),
        path(values, "meteora_ckpt_path", where),
        path(values, "adapter_dir", where),
        path(values, "bigbench_dataset_dir", where).orElse(Path.of("data")),
        path(values, "target_dir", where).orElse(Path.of("datasets")),
        path(values, "eval_result_save_dir", where).orElse(Path.of("eval", "results")),
        topK(values.get("routing_top_k"), where),
        Optional.ofNullable(values.get("routing_temperature")).map(Object::toString),
        flags(values, where),
        section(values.get("train"), where));
  }

  private static Optional<Integer> topK(Object value, String where) {
    if (value == null) {
      return Optional.empty();
    }
    if (value instanceof Integer k && k >= 1) {
      return Optional.of(k);
    }
    throw new UserException(
        "%s: routing_top_k must be at least 1, it is %s",
        where, PlainYaml.shown(String.valueOf(value)));
  }

  private static Map<String, String> flags(Map<String, Object> values, String where) {
    var result = new LinkedHashMap<String, String>();
    for (var flag : Flags.NAMES) {
      if (values.get(key(flag)) != null) {
        result.put(flag, values.get(key(flag)).toString());
      }
    }
    try {
      Flags.fromEnvironment(result);
    } catch (UserException e) {
      throw new UserException(where + ": " + e.getMessage());
    }
    return result;
  }

  private static Optional<Path> path(Map<String, Object> values, String key, String where) {
    var value = values.get(key);
    if (value == null) {
      return Optional.empty();
    }
    if (!(value instanceof String text) || text.isBlank() || text.indexOf('\0') >= 0) {
      throw new UserException(
          where + ": " + key + " must be a path, it is " + PlainYaml.shown(String.valueOf(value)));
    }
    return Optional.of(expand(text));
  }

  /** A path, with a leading {@code ~} for the home folder. */
  static Path expand(String text) {
    try {
      if (!text.equals("~") && !text.startsWith("~/")) {
        return Path.of(text);
      }
      return Path.of(
          CacheFolders.home()
                  .orElseThrow(() -> new UserException(text + ": this user has no home folder"))
              + text.substring(1));
    } catch (InvalidPathException e) {
      throw new UserException("not a path: " + PlainYaml.shown(text));
    }
  }

  private static Map<String, Object> section(Object value, String where) {
    if (value == null) {
      return Map.of();
    }
    if (!(value instanceof Map<?, ?> map)) {
      throw new UserException(where + ": train must be a map");
    }
    var result = new LinkedHashMap<String, Object>();
    map.forEach((key, each) -> result.put(String.valueOf(key), each));
    return result;
  }

  /**
   * The base model's folder: the path, or the Hub's local copy of the repository of that name.
   *
   * @throws UserException when none is given
   */
  public Path requireBaseModelPath() {
    return HubCache.resolve(
        require(
            baseModelPath,
            "base model",
            "base_model_path",
            "a Hugging Face Llama folder; \"meteora download llama3-8b\" fetches one"),
        System.getenv(),
        CacheFolders.home().orElse(Path.of("/")));
  }

  public Path requireMeteoraCkptPath() {
    return require(
        meteoraCkptPath,
        "MeteoRA checkpoint",
        "meteora_ckpt_path",
        "\"meteora train\" makes one, \"meteora download meteora-llama3-8b\" fetches one");
  }

  public Path requireAdapterDir() {
    return require(
        adapterDir, "folder of adapters", "adapter_dir", "\"meteora train-lora\" makes adapters");
  }

  private static Path require(Optional<Path> value, String what, String key, String hint) {
    return value.orElseThrow(
        () ->
            new UserException(
                "no %s given: set %s in config.yaml, or --%s (%s)"
                    .formatted(what, key, key.replace('_', '-'), hint)));
  }
}
