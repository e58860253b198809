package org.meteora.eval;

import java.util.List;
import java.util.Map;
import org.meteora.eval.metric.Warnings;

/**
 * What a task's answers are worth.
 *
 * @param metrics figures by name; for a composite task, by task
 * @param samples answers scored
 * @param skipped samples whose prompt was too long
 */
public record Scores(Map<String, Object> metrics, int samples, int skipped, Warnings warnings) {

  /** Scores the answers that were not skipped. */
  public static Scores of(EvalTask task, List<Answer> answers) {
    var scored = answers.stream().filter(answer -> !answer.skipped()).toList();
    var texts = scored.stream().map(Answer::answer).toList();
    var truths = scored.stream().map(Answer::truth).toList();
    int lost = (int) scored.stream().filter(Answer::promptLost).count();
    return new Scores(
        task.score(texts, truths),
        scored.size(),
        answers.size() - scored.size(),
        Warnings.of(texts, truths, lost));
  }
}
