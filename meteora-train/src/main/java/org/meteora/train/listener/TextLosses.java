package org.meteora.train.listener;

import java.util.Map;

/**
 * Cross-entropies of the next token, of answers and prompts apart. The gates' loss is of every
 * token; what an adapter knows shows in the answers, which are few of the tokens.
 *
 * @param answer mean over the tasks, each counting the same; NaN when there is none
 * @param prompt likewise
 * @param answerByTask mean over the tokens of each task that occurred
 * @param promptByTask likewise
 */
public record TextLosses(
    double answer,
    double prompt,
    Map<String, Double> answerByTask,
    Map<String, Double> promptByTask) {
  /** With the means over the tasks. */
  public static TextLosses of(Map<String, Double> answerByTask, Map<String, Double> promptByTask) {
    return new TextLosses(mean(answerByTask), mean(promptByTask), answerByTask, promptByTask);
  }

  private static double mean(Map<String, Double> byTask) {
    return byTask.values().stream().mapToDouble(Double::doubleValue).average().orElse(Double.NaN);
  }
}
