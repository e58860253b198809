package org.meteora.eval;

import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.meteora.eval.metric.Warnings;
import org.meteora.eval.statistics.Bootstrap;
import org.meteora.eval.statistics.Figure;
import org.meteora.eval.statistics.Interval;

/**
 * What a task's answers are worth.
 *
 * @param metrics figures by name; for a composite task, by task
 * @param intervals 95 % bootstrap intervals of {@link Bootstrap#RESAMPLES} resamples, by task and
 *     figure; a figure without an answer to score has none
 * @param samples answers scored
 * @param skipped samples whose prompt was too long
 */
public record Scores(
    Map<String, Object> metrics,
    Map<String, Map<String, Interval>> intervals,
    int samples,
    int skipped,
    Warnings warnings) {

  /** Scores the answers that were not skipped. */
  public static Scores of(EvalTask task, List<Answer> answers) {
    var scored = answers.stream().filter(answer -> !answer.skipped()).toList();
    var texts = scored.stream().map(Answer::answer).toList();
    var truths = scored.stream().map(Answer::truth).toList();
    int lost = (int) scored.stream().filter(Answer::promptLost).count();
    return new Scores(
        task.score(texts, truths),
        intervals(task.name(), task.figures(texts, truths)),
        scored.size(),
        answers.size() - scored.size(),
        Warnings.of(texts, truths, lost));
  }

  private static Map<String, Map<String, Interval>> intervals(
      String name, Map<String, List<Figure>> figures) {
    var draws = Bootstrap.seeded(Bootstrap.SEED, name);
    var result = new LinkedHashMap<String, Map<String, Interval>>();
    figures.forEach(
        (task, list) -> {
          var intervals = new LinkedHashMap<String, Interval>();
          var scorable = list.stream().filter(figure -> !Double.isNaN(figure.score())).toList();
          var resampled = Bootstrap.scores(scorable, Bootstrap.RESAMPLES, draws);
          for (int i = 0; i < resampled.length; i++) {
            intervals.put(scorable.get(i).name(), Interval.percentile(resampled[i]));
          }
          result.put(task, intervals);
        });
    return result;
  }
}
