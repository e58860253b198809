package org.meteora.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.OptionalInt;
import java.util.function.IntConsumer;
import org.junit.jupiter.api.Test;
import org.meteora.parallel.Collective;
import org.meteora.train.batch.Batch;
import org.meteora.train.batch.TrainingSample;

/** What is evaluated, and how means are taken, with a learner whose losses are known. */
class HeldOutTest {
  private static final List<String> TASKS = List.of("few", "many");

  /** Task 0's labels cost 1, task 1's 3; half with their own adapter, tenfold without any. */
  private static final class Known implements Learner {
    final Map<Integer, Integer> seen = new HashMap<>();

    @Override
    public Sums learn(
        Batch batch, double languageModelWeight, double gateWeight, long seed, IntConsumer done) {
      throw new AssertionError("an evaluation does not learn");
    }

    @Override
    public Sums evaluate(Batch batch) {
      batch.samples().forEach(sample -> seen.merge(sample.task(), 1, Integer::sum));
      return sums(batch, 1);
    }

    @Override
    public Sums reference(Batch batch, OptionalInt adapter) {
      adapter.ifPresent(
          own -> assertThat(batch.samples()).allMatch(sample -> sample.task() == own));
      return sums(batch, adapter.isPresent() ? 0.5 : 10);
    }

    private static Sums sums(Batch batch, double factor) {
      int rows = batch.rows();
      var prompt = new double[rows];
      var answer = new double[rows];
      for (int row = 0; row < rows; row++) {
        double each = factor * (batch.samples().get(row).task() == 0 ? 1 : 3);
        prompt[row] = 7 * each * batch.promptLabels(row);
        answer[row] = each * batch.answerLabels(row);
      }
      return new Sums(0, prompt, answer, 0, 0, new float[rows], new float[rows]);
    }
  }

  private static List<TrainingSample> samples() {
    var result = new ArrayList<TrainingSample>();
    for (int i = 0; i < 53; i++) {
      int task = i < 3 ? 0 : 1;
      result.add(new TrainingSample("s:" + i, new int[6 + i % 5], 2 + i % 3, task));
    }
    return result;
  }

  @Test
  void tasksCountTheSameAndReferencesStandBeside() {
    var config =
        TrainConfig.meteora(Map.of(), Map.of("eval_samples", 20, "batch_size", 4)).as(false, true);
    var learner = new Known();
    var heldOut = new HeldOut(config, 50, learner, samples(), TASKS, Collective.single());
    assertThat(heldOut.evaluate().oracle()).isEmpty();
    heldOut.measureReferences();
    learner.seen.clear();
    var evaluation = heldOut.evaluate();
    assertThat(learner.seen).isEqualTo(Map.of(0, 3, 1, 10));
    assertThat(evaluation.answerLoss()).isCloseTo((1 + 3) / 2.0, within(1e-9));
    assertThat(evaluation.losses().texts().prompt()).isCloseTo(14, within(1e-9));
    assertThat(evaluation.losses().texts().answerByTask())
        .containsOnlyKeys("few", "many")
        .hasEntrySatisfying("many", loss -> assertThat(loss).isCloseTo(3, within(1e-9)));
    assertThat(evaluation.oracle().orElseThrow().answer()).isCloseTo(1, within(1e-9));
    assertThat(evaluation.base().orElseThrow().answer()).isCloseTo(20, within(1e-9));
    assertThat(heldOut.evaluate()).isEqualTo(evaluation);
  }

  @Test
  void nothingHeldOut() {
    var config = TrainConfig.meteora(Map.of(), Map.of()).as(false, true);
    assertThat(
            new HeldOut(config, 50, new Known(), List.of(), TASKS, Collective.single()).isEmpty())
        .isTrue();
  }
}
