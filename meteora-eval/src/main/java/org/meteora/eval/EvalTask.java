package org.meteora.eval;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.OptionalInt;
import org.meteora.UserException;
import org.meteora.data.composite.CompositeTask;
import org.meteora.data.config.Nearest;
import org.meteora.data.tasks.Tasks;
import org.meteora.eval.metric.Bleu;
import org.meteora.eval.metric.CompositeScore;
import org.meteora.eval.metric.ExactAccuracy;
import org.meteora.eval.metric.FuzzyAccuracy;
import org.meteora.eval.metric.Gsm8kAccuracy;
import org.meteora.eval.metric.Metric;
import org.meteora.eval.metric.Rouge;
import org.meteora.eval.metric.YesNoAccuracy;
import org.meteora.eval.statistics.Figure;
import org.meteora.io.FolderNames;

/**
 * What can be evaluated: one of the catalogue's tasks, or several asked in one prompt.
 *
 * @param name also the name of its folder of data
 * @param parts the tasks of a composite task, in order; empty for a single one
 * @param limit samples at most
 * @param routingTemperature T of the routing unless the user says otherwise
 */
public record EvalTask(
    String name, List<String> parts, OptionalInt limit, double routingTemperature) {

  /**
   * A task by its name.
   *
   * @throws UserException when there is none, naming the nearest
   */
  public static EvalTask of(String name) {
    var composite = CompositeTask.find(name);
    if (composite.isPresent()) {
      return saved(name, composite.get().tasks());
    }
    return Tasks.find(name)
        .map(task -> new EvalTask(name, List.of(), task.evalLimit(), 1))
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
    return saved(name, parts);
  }

  /**
   * A task whose parts are known from an evaluation of it.
   *
   * @param parts empty for a single task
   */
  public static EvalTask saved(String name, List<String> parts) {
    FolderNames.require("the task name", name);
    if (parts.isEmpty()) {
      return Tasks.find(name).isPresent()
          ? of(name)
          : new EvalTask(name, List.of(), OptionalInt.empty(), 1);
    }
    var composite = new CompositeTask(name, List.copyOf(parts));
    return new EvalTask(
        name,
        composite.tasks(),
        OptionalInt.empty(),
        CompositeTask.routingTemperature(parts.size()));
  }

  /**
   * A task by its name, the user's own included: a composite task that {@code create-composite}
   * made, or any folder of data with a {@code test.jsonl}, whose answers are scored by exact
   * accuracy.
   *
   * @param targetDir folders of data
   * @throws UserException when there is none, naming the nearest
   */
  public static EvalTask of(String name, Path targetDir) {
    var known = Tasks.find(name).isPresent();
    if (!known && FolderNames.isOne(name)) {
      var composite = CompositeTask.find(name, targetDir);
      if (composite.isPresent()) {
        return saved(name, composite.get().tasks());
      }
      if (Files.isRegularFile(targetDir.resolve(name).resolve("test.jsonl"))) {
        return new EvalTask(name, List.of(), OptionalInt.empty(), 1);
      }
    }
    return of(name);
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
            name
                + ", sample "
                + i
                + ": the response has "
                + given
                + " parts, but there are "
                + parts.size()
                + " tasks: "
                + String.join(",", parts));
      }
    }
  }

  private static UserException unknown(String name) {
    var known = new ArrayList<>(Tasks.names());
    for (int n : new int[] {3, 5, 10}) {
      known.add("composite_" + n);
    }
    return new UserException(
        "unknown task \""
            + name
            + "\""
            + Nearest.hint(name, known)
            + " (a task of your own needs its folder in --target-dir, or --tasks)");
  }

  /** All metrics of cleaned answers; for a composite task, by task. */
  public Map<String, Object> score(List<String> answers, List<String> truths) {
    if (!parts.isEmpty()) {
      return CompositeScore.score(parts, EvalTask::metrics, answers, truths);
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
      return CompositeScore.figures(name, parts, EvalTask::metrics, answers, truths);
    }
    var figures = new ArrayList<Figure>();
    metrics(name).forEach(metric -> figures.addAll(metric.figures(answers, truths)));
    return Map.of(name, figures);
  }

  private static List<Metric> metrics(String task) {
    return Tasks.find(task)
        .map(known -> known.metrics().stream().map(EvalTask::metric).toList())
        .orElseGet(() -> List.of(new ExactAccuracy()));
  }

  private static Metric metric(org.meteora.data.tasks.Metric kind) {
    return switch (kind) {
      case ACCURACY_EXACT -> new ExactAccuracy();
      case ACCURACY_FUZZY -> new FuzzyAccuracy();
      case YES_NO_ACCURACY -> new YesNoAccuracy();
      case GSM8K_ACCURACY -> new Gsm8kAccuracy();
      case BLEU -> new Bleu();
      case ROUGE -> new Rouge();
    };
  }
}
