package org.meteora.train;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.Map;
import java.util.Optional;
import org.junit.jupiter.api.Test;
import org.meteora.train.listener.AnswerWatch;
import org.meteora.train.listener.Evaluation;
import org.meteora.train.listener.StepReport;
import org.meteora.train.listener.TextLosses;

/** When a run is told that it costs the answers too much. */
class AnswerWatchTest {
  private static Evaluation evaluation(double answer, double oracle) {
    var losses =
        new StepReport.Losses(
            1, 1, 1, 1, Map.of(), 1, Map.of(), 1, TextLosses.of(Map.of("t", answer), Map.of()));
    return new Evaluation(
        losses, Optional.of(TextLosses.of(Map.of("t", oracle), Map.of())), Optional.empty());
  }

  private static String warnings(double oracle, double... answers) {
    return warnings(true, true, oracle, answers);
  }

  private static String warnings(boolean first, boolean last, double oracle, double... answers) {
    var said = new StringBuilder();
    var watch = new AnswerWatch(first, last, said::append);
    watch.onStart(0, answers.length - 1);
    for (int step = 0; step < answers.length; step++) {
      watch.onEvaluation(step, evaluation(answers[step], oracle));
    }
    return said.toString();
  }

  @Test
  void aRiseOnTheWayAndAnEndAboveTheOwnAdapters() {
    assertThat(warnings(1, 3, 1.2, 1.09)).isEmpty();
    assertThat(warnings(1, 3, 1.01, 1.2)).isEmpty(); // the best is kept
    assertThat(warnings(1, 3, 1.0, 1.3, 1.4))
        .isEqualTo(
            "step 2: the answer loss rose from 1.0000 (step 1) to 1.3000; try a lower"
                + " --learning-rate or, if the adapters are trained too, a lower"
                + " --adapter-learning-rate or --train gates");
    assertThat(warnings(1, 3, 2, 1.5))
        .startsWith("the answer loss, 1.5000 at best, stays 50% above the 1.0000 of each task's")
        .contains("--max-steps");
  }

  /**
   * What is above after the gates' part is mended by the next, in which the loss rises at first.
   */
  @Test
  void partsOfARun() {
    assertThat(warnings(true, false, 1, 3, 2, 1.5)).isEmpty();
    assertThat(warnings(true, false, 1, 3, 2, 2.5)).startsWith("step 2: the answer loss rose");
    assertThat(warnings(false, true, 1, 1.5, 2, 1.05)).isEmpty();
    assertThat(warnings(false, true, 1, 1.5, 2, 1.4)).contains("stays 40% above");
  }
}
