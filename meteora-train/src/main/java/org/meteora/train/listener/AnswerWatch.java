package org.meteora.train.listener;

import java.util.Locale;
import java.util.function.Consumer;

/**
 * Warns when training costs the answers more than it should: when their loss rises on the way, and
 * when at the end it stays above that of the tasks' own adapters.
 */
public final class AnswerWatch implements TrainingListener {
  /** How much of a rise above the lowest loss so far is too much. */
  private static final double RISE = 1.2;

  /** How far above the own adapters' loss the end may lie. */
  private static final double ABOVE_ORACLE = 1.1;

  private final Consumer<String> log;
  private final boolean first;
  private final boolean last;
  private long steps;
  private double lowest = Double.POSITIVE_INFINITY;
  private long lowestStep;
  private boolean rose;

  /**
   * @param first whether the run begins with this part; in another the loss rises before it falls
   * @param last whether the run ends with this part; another would mend what is above the adapters'
   * @param log gets each warning, one line
   */
  public AnswerWatch(boolean first, boolean last, Consumer<String> log) {
    this.first = first;
    this.last = last;
    this.log = log;
  }

  /**
   * Whether the answers' loss is too far above that of the tasks' own adapters, which are known.
   */
  public static boolean staysAbove(Evaluation evaluation) {
    return evaluation.answerLoss() > ABOVE_ORACLE * evaluation.oracle().orElseThrow().answer();
  }

  @Override
  public void onStart(long step, long all) {
    steps = all;
  }

  @Override
  public void onEvaluation(long step, Evaluation evaluation) {
    if (evaluation.oracle().isEmpty() || !Double.isFinite(evaluation.answerLoss())) {
      return;
    }
    double loss = evaluation.answerLoss();
    if (loss < lowest) {
      lowest = loss;
      lowestStep = step;
    } else if (first && !rose && loss > RISE * lowest) {
      rose = true;
      log.accept(
          String.format(
              Locale.ROOT,
              "step %d: the answer loss rose from %.4f (step %d) to %.4f; try a lower"
                  + " --learning-rate or, if the adapters are trained too, a lower"
                  + " --adapter-learning-rate or --train gates",
              step,
              lowest,
              lowestStep,
              loss));
    }
    double oracle = evaluation.oracle().get().answer();
    if (last && step == steps && lowest > ABOVE_ORACLE * oracle) {
      log.accept(
          String.format(
              Locale.ROOT,
              "the answer loss, %.4f at best, stays %.0f%% above the %.4f of each task's own"
                  + " adapter: try more --max-steps or, if the adapters were trained too, a lower"
                  + " --adapter-learning-rate",
              lowest,
              100 * (lowest / oracle - 1),
              oracle));
    }
  }
}
