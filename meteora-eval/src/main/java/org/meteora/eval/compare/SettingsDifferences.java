package org.meteora.eval.compare;

import com.fasterxml.jackson.databind.JsonNode;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;

/** In what the settings of saved runs differ. */
final class SettingsDifferences {
  /** Fields of a result that are outcomes or differ in every run. */
  private static final Set<String> OUTCOMES =
      Set.of(
          "task",
          "created",
          "arguments",
          "samples",
          "skipped",
          "problems",
          "metrics",
          "intervals",
          "warnings",
          "throughput",
          "batching",
          "answers");

  /**
   * What columns are called after, and where things lie, which says nothing of what they are:
   * samples and weights themselves are compared.
   */
  private static final Set<String> PLACES =
      Set.of(
          "model.model",
          "settings.test_file",
          "model.base_model_path",
          "model.meteora_ckpt_path",
          "model.adapter_dir");

  private static final String BASE_WEIGHTS = "base weights (sha256)";

  private final List<Columns.Column> columns;

  /** By name, then by values: the tasks. */
  private final Map<String, Map<List<String>, List<String>>> found = new TreeMap<>();

  SettingsDifferences(List<Columns.Column> columns) {
    this.columns = columns;
  }

  void add(String evaluation, List<SavedRun> runs) {
    var flat = runs.stream().map(run -> run == null ? null : flat(run.json())).toList();
    var names = new TreeSet<String>();
    flat.stream().filter(Objects::nonNull).forEach(each -> names.addAll(each.keySet()));
    for (var name : names) {
      var values = new ArrayList<String>();
      flat.forEach(each -> values.add(each == null ? null : each.getOrDefault(name, "none")));
      if (values.stream().filter(Objects::nonNull).distinct().count() > 1) {
        found
            .computeIfAbsent(name, k -> new LinkedHashMap<>())
            .computeIfAbsent(values, k -> new ArrayList<>())
            .add(evaluation);
      }
    }
  }

  private Map<String, String> flat(JsonNode json) {
    var result = new TreeMap<String, String>();
    json.properties()
        .forEach(
            field -> {
              if (!OUTCOMES.contains(field.getKey())) {
                flatten(field.getKey(), field.getValue(), result);
              }
            });
    result.keySet().removeIf(name -> PLACES.contains(name) || name.startsWith("model.sha256."));
    var base = json.path("model").path("base_model_path").asText("");
    var weights = new StringBuilder();
    var others = new StringBuilder();
    json.path("model")
        .path("sha256")
        .properties()
        .forEach(
            file ->
                (!base.isEmpty() && file.getKey().startsWith(base) ? weights : others)
                    .append(' ')
                    .append(
                        file.getValue().asText(),
                        0,
                        Math.min(8, file.getValue().asText().length())));
    result.put(BASE_WEIGHTS, weights.isEmpty() ? "none" : weights.toString().strip());
    result.put(
        "adapters and gates (sha256)", others.isEmpty() ? "none" : others.toString().strip());
    return result;
  }

  private static void flatten(String name, JsonNode node, Map<String, String> result) {
    if (node.isObject()) {
      node.properties().forEach(e -> flatten(name + "." + e.getKey(), e.getValue(), result));
    } else if (!node.isNull()) {
      result.put(name, node.isTextual() ? node.asText() : node.toString());
    }
  }

  /** What a comparison of models or of routing means to change. */
  private static boolean meant(String name) {
    return name.startsWith("model.") && !name.equals("model.dtype")
        || name.startsWith("adapters and gates")
        || name.equals("settings.batch_size");
  }

  /** Those that make a comparison unfair, a line each. */
  List<String> warnings() {
    var warnings = new ArrayList<String>();
    found.forEach(
        (name, byValues) -> {
          if (!meant(name)) {
            byValues.forEach(
                (values, tasks) ->
                    warnings.add(name + " differs in " + some(tasks) + ": " + described(values)));
          }
        });
    return warnings;
  }

  private String described(List<String> values) {
    var text = new ArrayList<String>();
    for (int c = 0; c < values.size(); c++) {
      if (values.get(c) != null) {
        text.add(columns.get(c).label() + " " + values.get(c));
      }
    }
    return String.join(", ", text);
  }

  private static String some(List<String> tasks) {
    return tasks.size() <= 3
        ? String.join(", ", tasks)
        : String.join(", ", tasks.subList(0, 2)) + " and " + (tasks.size() - 2) + " others";
  }

  List<Comparison.Setting> different() {
    var result = new ArrayList<Comparison.Setting>();
    found.forEach(
        (name, byValues) ->
            byValues.forEach(
                (values, tasks) -> result.add(new Comparison.Setting(name, tasks, values))));
    return result;
  }
}
