package org.meteora.eval.metric;

import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Function;
import java.util.stream.IntStream;
import org.meteora.data.PythonText;
import org.meteora.data.composite.CompositeTask;
import org.meteora.eval.statistics.Figure;

/** Scores answers to composite prompts, which put several tasks' questions in one. */
public final class CompositeScore {
  private static final String ATTEMPTS = "Avg attempt nums";
  private static final String CORRECT = "Avg correct nums";

  private CompositeScore() {}

  /**
   * The metrics of every task, {@code Avg attempt nums} (how many questions of a prompt get an
   * answer) and {@code Avg correct nums} (the sum of the tasks' accuracies).
   *
   * @param tasks names, in the order of the questions
   * @param answers cleaned answers, one for each prompt
   * @param responses true answers, one for each prompt, its parts joined by {@code @@@@\n}
   */
  public static Map<String, Object> score(
      List<String> tasks,
      Function<String, List<Metric>> metrics,
      List<String> answers,
      List<String> responses) {
    var byTask = new LinkedHashMap<String, Object>();
    long attempts = 0;
    double correct = 0;
    for (var part : parts(tasks, answers, responses)) {
      attempts += part.answers().stream().filter(text -> !text.isEmpty()).count();
      var figures = new LinkedHashMap<String, Object>();
      for (var metric : metrics.apply(part.task())) {
        figures.putAll(metric.score(part.answers(), part.truths()));
      }
      if (figures.get(Figure.ACCURACY) instanceof Double accuracy) {
        correct += accuracy;
      }
      byTask.put(part.task(), figures);
    }
    var result = new LinkedHashMap<String, Object>();
    boolean none = answers.isEmpty();
    result.put(ATTEMPTS, none ? null : attempts / (double) answers.size());
    result.putAll(byTask);
    result.put(CORRECT, none ? null : correct);
    return result;
  }

  /**
   * What the scores are made of, in the order of {@link #score}.
   *
   * @param name of the composite task, under which the two counts stand
   * @return figures by task
   */
  public static Map<String, List<Figure>> figures(
      String name,
      List<String> tasks,
      Function<String, List<Metric>> metrics,
      List<String> answers,
      List<String> responses) {
    var result = new LinkedHashMap<String, List<Figure>>();
    var attempts = new double[answers.size()];
    var correct = new double[answers.size()];
    for (var part : parts(tasks, answers, responses)) {
      var figures =
          metrics.apply(part.task()).stream()
              .flatMap(metric -> metric.figures(part.answers(), part.truths()).stream())
              .toList();
      for (int s = 0; s < attempts.length; s++) {
        attempts[s] += part.answers().get(s).isEmpty() ? 0 : 1;
      }
      for (var figure : figures) {
        for (int s = 0; s < correct.length && figure.isAccuracy(); s++) {
          correct[s] += figure.rows()[s][0];
        }
      }
      result.put(part.task(), figures);
    }
    result.put(name, List.of(Figure.mean(ATTEMPTS, attempts), Figure.mean(CORRECT, correct)));
    return result;
  }

  /** One task's questions: what was answered, and what is right, prompt by prompt. */
  private record Part(String task, List<String> answers, List<String> truths) {}

  private static List<Part> parts(
      List<String> tasks, List<String> answers, List<String> responses) {
    var truths =
        responses.stream().map(response -> response.split(CompositeTask.SEPARATOR, -1)).toList();
    return IntStream.range(0, tasks.size())
        .mapToObj(
            i ->
                new Part(
                    tasks.get(i),
                    answers.stream().map(text -> answer(text, i + 1)).toList(),
                    truths.stream().map(each -> i < each.length ? each[i] : "").toList()))
        .toList();
  }

  /** The text after the first {@code number. }, to the end of its line; empty without one. */
  static String answer(String text, int number) {
    var mark = number + ". ";
    int at = text.indexOf(mark);
    if (at < 0) {
      return "";
    }
    int end = text.indexOf('\n', at);
    return PythonText.strip(text.substring(at + mark.length(), end < 0 ? text.length() : end));
  }
}
