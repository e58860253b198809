package org.meteora.eval;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalInt;
import java.util.function.Function;
import java.util.stream.Collectors;
import org.meteora.UserException;
import org.meteora.data.composite.CompositeTask;
import org.meteora.data.config.Nearest;
import org.meteora.data.tasks.MetricsFile;
import org.meteora.data.tasks.Tasks;
import org.meteora.eval.metric.CompositeScore;
import org.meteora.eval.metric.Metric;
import org.meteora.eval.statistics.Figure;
import org.meteora.io.FolderNames;

/**
 * What can be evaluated: a task, or several asked in one prompt.
 *
 * @param name also the name of its folder of data
 * @param parts the tasks of a composite task, in order; empty for a single one
 * @param metrics keys of the metrics of the task, or of each part, by its name
 * @param limit samples at most
 * @param routingTemperature T of the routing unless the user says otherwise
 */
public record EvalTask(
    String name,
    List<String> parts,
    Map<String, List<String>> metrics,
    OptionalInt limit,
    double routingTemperature) {

  /**
   * @throws UserException when there is no metric of a key
   */
  public EvalTask {
    metrics.forEach(
        (task, keys) -> {
          try {
            keys.forEach(Metric::of);
          } catch (UserException e) {
            throw new UserException("the metrics of " + task + ": " + e.getMessage(), e);
          }
        });
  }

  /**
   * One of the 28 tasks, or one of the paper's composite tasks.
   *
   * @throws UserException when there is none of this name, naming the nearest
   */
  public static EvalTask of(String name) {
    return CompositeTask.find(name)
        .map(composite -> composite(composite, part -> Tasks.get(part).metrics()))
        .or(() -> Tasks.find(name).map(task -> single(name, task.metrics(), task.evalLimit())))
        .orElseThrow(() -> unknown(name));
  }

  /**
   * A composite task of the user's own.
   *
   * @param name of its folder of data
   * @param parts names of catalogue tasks, or of folders of data, in the order they are asked
   * @param targetDir folders of data
   */
  public static EvalTask composite(String name, List<String> parts, Path targetDir) {
    for (var part : parts) {
      if (!FolderNames.isOne(part) || !Files.isDirectory(targetDir.resolve(part))) {
        Tasks.get(part); // names the nearest
      }
    }
    return saved(name, parts, targetDir);
  }

  /**
   * A task whose parts are known from an evaluation of it.
   *
   * @param parts empty for a single task
   * @param own keys of the metrics of tasks beyond the 28, by name; without any, answers must be
   *     equal
   */
  public static EvalTask saved(String name, List<String> parts, Map<String, List<String>> own) {
    return known(name, parts, task -> Optional.ofNullable(own.get(task)));
  }

  private static EvalTask saved(String name, List<String> parts, Path targetDir) {
    return known(name, parts, task -> MetricsFile.read(targetDir.resolve(task)));
  }

  private static EvalTask known(
      String name, List<String> parts, Function<String, Optional<List<String>>> own) {
    Function<String, List<String>> metrics =
        task -> Tasks.metrics(FolderNames.require("the task name", task), () -> own.apply(task));
    FolderNames.require("the task name", name);
    if (!parts.isEmpty()) {
      return composite(new CompositeTask(name, List.copyOf(parts)), metrics);
    }
    return Tasks.find(name).isPresent()
        ? of(name)
        : single(name, metrics.apply(name), OptionalInt.empty());
  }

  /**
   * A task by its name, the user's own included: a composite task that {@code create-composite}
   * made, or any folder of data with a {@code test.jsonl}, whose answers are scored as its {@code
   * metrics.json} says, or by exact accuracy.
   *
   * @param targetDir folders of data
   * @throws UserException when there is none, naming the nearest
   */
  public static EvalTask of(String name, Path targetDir) {
    var known = Tasks.find(name).isPresent();
    if (!known && FolderNames.isOne(name)) {
      var composite = CompositeTask.find(name, targetDir);
      if (composite.isPresent()) {
        return saved(name, composite.get().tasks(), targetDir);
      }
      if (Files.isRegularFile(targetDir.resolve(name).resolve("test.jsonl"))) {
        return saved(name, List.of(), targetDir);
      }
    }
    return of(name);
  }

  private static EvalTask single(String name, List<String> metrics, OptionalInt limit) {
    return new EvalTask(name, List.of(), Map.of(name, metrics), limit, 1);
  }

  private static EvalTask composite(
      CompositeTask composite, Function<String, List<String>> metrics) {
    var parts = composite.tasks();
    return new EvalTask(
        composite.name(),
        parts,
        parts.stream().collect(Collectors.toMap(part -> part, metrics)),
        OptionalInt.empty(),
        CompositeTask.routingTemperature(parts.size()));
  }

  /**
   * Checks that every true answer of a composite task has an answer to each of its questions.
   *
   * @throws UserException naming the first that has not
   */
  public void requireParts(List<String> truths) {
    for (int i = 0; i < truths.size() && !parts.isEmpty(); i++) {
      int given = truths.get(i).split(CompositeTask.SEPARATOR, -1).length;
      if (given != parts.size()) {
        throw new UserException(
            "%s, sample %s: the response has %s parts, but there are %s tasks: %s",
            name, i, given, parts.size(), String.join(",", parts));
      }
    }
  }

  private static UserException unknown(String name) {
    var known = new ArrayList<>(Tasks.names());
    known.addAll(List.of("composite_3", "composite_5", "composite_10"));
    return new UserException(
        "unknown task \"%s\"%s (a task of your own needs its folder in --target-dir, or"
            + " --tasks)",
        name, Nearest.hint(name, known));
  }

  /** All metrics of cleaned answers; for a composite task, by task. */
  public Map<String, Object> score(List<String> answers, List<String> truths) {
    if (!parts.isEmpty()) {
      return CompositeScore.score(parts, this::metrics, answers, truths);
    }
    var figures = new LinkedHashMap<String, Object>();
    for (var metric : metrics(name)) {
      figures.putAll(metric.score(answers, truths));
    }
    return figures;
  }

  /**
   * What the scores are made of, for intervals and comparisons.
   *
   * @return figures by task: one task, or a composite task's parts and, under its own name, the
   *     counts of attempts and of right answers
   */
  public Map<String, List<Figure>> figures(List<String> answers, List<String> truths) {
    if (!parts.isEmpty()) {
      return CompositeScore.figures(name, parts, this::metrics, answers, truths);
    }
    return Map.of(
        name,
        metrics(name).stream()
            .flatMap(metric -> metric.figures(answers, truths).stream())
            .toList());
  }

  private List<Metric> metrics(String task) {
    return metrics.get(task).stream().map(Metric::of).toList();
  }
}
