package org.meteora.train;

import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.meteora.parallel.Exchange;
import org.meteora.train.batch.Batch;
import org.meteora.train.listener.StepReport;
import org.meteora.train.listener.TextLosses;

/** Sums of several batches, and of all processes. */
final class Tally {
  private static final int FIXED = 3;
  private static final int PROMPT = 0;
  private static final int PROMPT_LABELS = 1;
  private static final int ANSWER = 2;
  private static final int ANSWER_LABELS = 3;
  private static final int RIGHT = 4;
  private static final int RIGHT_OF = 5;
  private static final int DOMINATED = 6;
  private static final int DOMINATED_OF = 7;

  /** How many sums each task has. */
  private static final int EACH = 8;

  private final TrainConfig config;
  private final double gateLossWeight;
  private final List<String> tasks;
  private final Exchange collective;

  /** Gate loss, its labels, tokens, then the tasks'. */
  private final double[] sums;

  /**
   * @param gateLossWeight factor of the gates' loss in what is minimised
   */
  Tally(TrainConfig config, double gateLossWeight, List<String> tasks, Exchange collective) {
    this.config = config;
    this.gateLossWeight = gateLossWeight;
    this.tasks = tasks;
    this.collective = collective;
    sums = new double[FIXED + EACH * tasks.size()];
  }

  void add(Batch batch, Learner.Sums s) {
    boolean gated = s.gates() > 0;
    sums[0] += gated ? s.gate() / s.gates() : 0;
    sums[1] += gated ? batch.gateLabelCount() : 0;
    sums[2] += batch.tokens();
    for (int row = 0; row < batch.rows(); row++) {
      var sample = batch.samples().get(row);
      int at = FIXED + EACH * sample.task();
      if (!batch.responseOnly()) {
        sums[at + PROMPT] += s.prompt()[row];
        sums[at + PROMPT_LABELS] += batch.promptLabels(row);
      }
      sums[at + ANSWER] += s.answer()[row];
      sums[at + ANSWER_LABELS] += batch.answerLabels(row);
      if (gated) {
        double counted = sample.length() - 1.0;
        sums[at + RIGHT] += s.right()[row];
        sums[at + RIGHT_OF] += s.gates() * counted;
        sums[at + DOMINATED] += s.dominated()[row];
        sums[at + DOMINATED_OF] += counted;
      }
    }
  }

  StepReport.Losses losses() {
    var all = collective.sum(sums);
    var total = new double[EACH];
    for (int i = FIXED; i < all.length; i++) {
      total[(i - FIXED) % EACH] += all[i];
    }
    double prompts = config.answersOnly() ? 0 : 1;
    double languageModel =
        (prompts * total[PROMPT] + total[ANSWER])
            / Math.max(1, prompts * total[PROMPT_LABELS] + total[ANSWER_LABELS]);
    double gate = all[1] == 0 ? Double.NaN : all[0] / all[1];
    return new StepReport.Losses(
        languageModel,
        gate,
        Double.isNaN(gate) ? languageModel : languageModel + gateLossWeight * gate,
        total[RIGHT] / total[RIGHT_OF], // NaN without gates
        byTask(all, RIGHT, RIGHT_OF),
        total[DOMINATED] / total[DOMINATED_OF],
        byTask(all, DOMINATED, DOMINATED_OF),
        (long) all[2],
        TextLosses.of(byTask(all, ANSWER, ANSWER_LABELS), byTask(all, PROMPT, PROMPT_LABELS)));
  }

  private Map<String, Double> byTask(double[] all, int what, int of) {
    var result = new LinkedHashMap<String, Double>();
    for (int task = 0; task < tasks.size(); task++) {
      int at = FIXED + EACH * task;
      if (all[at + of] > 0) {
        result.put(tasks.get(task), all[at + what] / all[at + of]);
      }
    }
    return result;
  }
}
