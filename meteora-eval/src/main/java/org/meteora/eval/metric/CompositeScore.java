package org.meteora.eval.metric;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Function;
import org.meteora.data.composite.CompositeTask;
import org.meteora.eval.Texts;

/** Scores answers to composite prompts, which put several tasks' questions in one. */
public final class CompositeScore {
  private CompositeScore() {}

  /**
   * The metrics of every task, {@code Avg attempt nums} (how many questions of a prompt get an
   * answer) and {@code Avg correct nums} (the sum of the tasks' accuracies).
   *
   * @param tasks names, in the order of the questions
   * @param metrics a task's metrics
   * @param answers cleaned answers, one for each prompt
   * @param responses true answers, one for each prompt, its parts joined by {@code @@@@\n}
   */
  public static Map<String, Object> score(
      List<String> tasks,
      Function<String, List<Metric>> metrics,
      List<String> answers,
      List<String> responses) {
    var parts =
        responses.stream().map(response -> response.split(CompositeTask.SEPARATOR, -1)).toList();
    var byTask = new LinkedHashMap<String, Object>();
    long attempts = 0;
    double correct = 0;
    for (int i = 0; i < tasks.size(); i++) {
      var given = new ArrayList<String>();
      var truths = new ArrayList<String>();
      for (int s = 0; s < answers.size(); s++) {
        given.add(answer(answers.get(s), i + 1));
        truths.add(i < parts.get(s).length ? parts.get(s)[i] : "");
      }
      attempts += given.stream().filter(text -> !text.isEmpty()).count();
      var figures = new LinkedHashMap<String, Object>();
      for (var metric : metrics.apply(tasks.get(i))) {
        figures.putAll(metric.score(given, truths));
      }
      if (figures.get(Accuracy.NAME) instanceof Double accuracy) {
        correct += accuracy;
      }
      byTask.put(tasks.get(i), figures);
    }
    var result = new LinkedHashMap<String, Object>();
    boolean none = answers.isEmpty();
    result.put("Avg attempt nums", none ? null : attempts / (double) answers.size());
    result.putAll(byTask);
    result.put("Avg correct nums", none ? null : correct);
    return result;
  }

  /** The text after the first {@code number. }, to the end of its line; empty without one. */
  static String answer(String text, int number) {
    var mark = number + ". ";
    int at = text.indexOf(mark);
    if (at < 0) {
      return "";
    }
    int end = text.indexOf('\n', at);
    return Texts.strip(text.substring(at + mark.length(), end < 0 ? text.length() : end));
  }
}
