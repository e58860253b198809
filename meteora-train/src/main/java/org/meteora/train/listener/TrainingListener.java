package org.meteora.train.listener;

import java.nio.file.Path;

/** Watches a training run. Only the first process has listeners. */
public interface TrainingListener {
  /** Before the first step. {@code step} steps were made by the run that this one resumes. */
  default void onStart(long step, long steps) {}

  /**
   * After {@link #onStart}, when another part than the run's first begins.
   *
   * @param kept the step whose parameters it begins with
   */
  default void onPart(Part part, long kept) {}

  default void onStep(StepReport report) {}

  /** After an evaluation on the samples held out. */
  default void onEvaluation(long step, Evaluation evaluation) {}

  /** After a checkpoint has been written. */
  default void onCheckpoint(long step, Path folder) {}

  /** After the last step, or when training stopped for any reason. */
  default void onEnd() {}
}
