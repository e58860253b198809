package org.meteora.data.hub;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.meteora.UserException;
import org.meteora.data.config.PlainYaml;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Texts;

/** The lines of config.yaml that point to what was downloaded. */
public final class ConfigLines {
  private ConfigLines() {}

  /**
   * The keys and paths for what a folder holds: a base model ({@code base_model_path}), or
   * checkpoints ({@code base_model_path}, {@code meteora_ckpt_path}: the folder {@code top_2}, or
   * the first {@code top_k}, and {@code adapter_dir}: the folder that holds adapters).
   *
   * @param files of the download, relative to {@code folder}
   * @param baseModel the folder of the base model that goes with checkpoints, when known
   * @return nothing for a data set, or a folder that holds neither
   */
  public static Map<String, Path> of(Path folder, List<Path> files, Optional<Path> baseModel) {
    var adapters = new TreeMap<Path, Integer>(); // how many a folder holds
    var checkpoints = new TreeSet<Path>();
    boolean isBase = false;
    for (var file : files) {
      var name = file.getFileName().toString();
      var parent = folder.resolve(file).getParent();
      if (file.getParent() == null) {
        isBase |= name.equals("config.json");
      } else if (name.equals("adapter_config.json")) {
        adapters.merge(parent.getParent(), 1, Integer::sum);
      } else if (parent.getFileName().toString().matches("top_\\d+")) {
        checkpoints.add(parent);
      }
    }
    // a folder with gates may carry an adapter_config.json of its own
    adapters.keySet().removeAll(checkpoints);
    var lines = new LinkedHashMap<String, Path>();
    if (!checkpoints.isEmpty()) {
      var best =
          checkpoints.stream()
              .filter(each -> each.endsWith("top_2"))
              .findFirst()
              .orElseGet(checkpoints::first);
      adapters.keySet().removeIf(holder -> adapters.size() > 1 && holder.equals(best.getParent()));
      baseModel.ifPresent(base -> lines.put("base_model_path", base));
      lines.put("meteora_ckpt_path", best);
      adapters.entrySet().stream()
          .max(Map.Entry.comparingByValue())
          .ifPresent(entry -> lines.put("adapter_dir", entry.getKey()));
    } else if (isBase) {
      lines.put("base_model_path", folder);
    }
    return lines;
  }

  /** One line of YAML. */
  public static String line(String key, Path value) {
    return key + ": '" + value.toString().replace("'", "''") + "'";
  }

  /**
   * Sets keys in a config file, keeping everything else of it, comments included; makes the file
   * when there is none.
   *
   * @throws UserException when the file is not YAML, or not a map, before or after
   */
  public static void write(Path config, Map<String, Path> lines) {
    var text = Files.exists(config) ? Texts.read(config) : "";
    var before = parse(config, text);
    var all = new ArrayList<String>();
    for (var entry : lines.entrySet()) {
      var line = line(entry.getKey(), entry.getValue());
      var old =
          Pattern.compile("(?m)^" + Pattern.quote(entry.getKey()) + "[ \\t]*:.*$").matcher(text);
      var end = text.isEmpty() || text.endsWith("\n") ? "" : "\n";
      text =
          old.find() ? old.replaceFirst(Matcher.quoteReplacement(line)) : text + end + line + "\n";
      all.add(line);
    }
    var expected = new LinkedHashMap<Object, Object>(before);
    lines.forEach((key, value) -> expected.put(key, value.toString()));
    if (!expected.equals(parse(config, text))) {
      throw new UserException(
          "%s is written in a way that cannot be edited line by line; set by hand: %s",
          config, String.join("; ", all));
    }
    AtomicFiles.writeString(config, text);
  }

  private static Map<?, ?> parse(Path config, String text) {
    return switch (PlainYaml.load(text, config.toString())) {
      case null -> Map.of();
      case Map<?, ?> map -> map;
      default -> throw new UserException(config + " must be a map of keys and values");
    };
  }
}
