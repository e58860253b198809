package org.meteora.train.listener;

import java.util.Optional;

/**
 * A model on samples held out, and what it is measured against.
 *
 * @param losses of the model as it is now
 * @param oracle of every task's own adapter alone, as it was embedded; empty without gates
 * @param base of the base model alone; empty without gates
 */
public record Evaluation(
    StepReport.Losses losses, Optional<TextLosses> oracle, Optional<TextLosses> base) {
  /** The model's answer loss, mean over the tasks. */
  public double answerLoss() {
    return losses.texts().answer();
  }
}
