package org.meteora.eval.compare;

import com.fasterxml.jackson.databind.JsonNode;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.stream.Collectors;

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

  private static final String ADAPTERS = "adapters and gates (sha256)";

  private final List<Columns.Column> columns;

  /** By name, then by values: the tasks. */
  private final Map<String, Map<List<String>, List<String>>> found = new TreeMap<>();

  SettingsDifferences(List<Columns.Column> columns) {
    this.columns = columns;
  }

  void add(String evaluation, List<SavedRun> runs) {
    var flat = Comparer.each(runs, run -> flat(run.json()));
    var names = new TreeSet<String>();
    Comparer.present(flat).forEach(each -> names.addAll(each.keySet()));
    for (var name : names) {
      var values = Comparer.each(flat, each -> each.getOrDefault(name, "none"));
      if (Comparer.differ(values)) {
        found
            .computeIfAbsent(name, k -> new LinkedHashMap<>())
            .computeIfAbsent(values, k -> new ArrayList<>())
            .add(evaluation);
      }
    }
  }

  private Map<String, String> flat(JsonNode json) {
    var result = new TreeMap<String, String>();
    for (var field : json.properties()) {
      if (!OUTCOMES.contains(field.getKey())) {
        flatten(field.getKey(), field.getValue(), result);
      }
    }
    result.keySet().removeIf(name -> PLACES.contains(name) || name.startsWith("model.sha256."));
    var base = json.path("model").path("base_model_path").asText("");
    var sums =
        json.path("model").path("sha256").properties().stream()
            .collect(
                Collectors.partitioningBy(
                    file -> !base.isEmpty() && file.getKey().startsWith(base),
                    Collectors.mapping(
                        file -> shortened(file.getValue().asText()), Collectors.joining(" "))));
    result.put("base weights (sha256)", sums.get(true).isEmpty() ? "none" : sums.get(true));
    result.put(ADAPTERS, sums.get(false).isEmpty() ? "none" : sums.get(false));
    return result;
  }

  private static String shortened(String sum) {
    return sum.substring(0, Math.min(8, sum.length()));
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
        || name.equals(ADAPTERS)
        || name.equals("settings.batch_size");
  }

  /** Those that make a comparison unfair, a line each. */
  List<String> warnings() {
    return different().stream()
        .filter(each -> !meant(each.name()))
        .map(
            each ->
                "%s differs in %s: %s"
                    .formatted(
                        each.name(), some(each.tasks()), Columns.listed(columns, each.values())))
        .toList();
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
