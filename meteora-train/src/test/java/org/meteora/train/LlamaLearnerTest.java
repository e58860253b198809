package org.meteora.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import ai.djl.ndarray.NDArray;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.OptionalInt;
import java.util.Random;
import java.util.concurrent.atomic.AtomicBoolean;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.meteora.model.LlamaTraining.Recompute;
import org.meteora.moe.ForwardMode;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;
import org.meteora.train.batch.Batch;
import org.meteora.train.batch.TrainingSample;
import org.meteora.train.optim.FlatParameters;

/** Gradients without reference data: unequal ranks and scales, padding, dropout. */
class LlamaLearnerTest {
  private static final Batch BATCH = new Batch(ResumeTest.samples().subList(0, 5), false);
  private static final double WEIGHT = 0.05;

  private static double loss(Learner.Sums sums) {
    return WEIGHT * sums.languageModel() + sums.gate() / sums.gates();
  }

  private static float[] gradients(LlamaLearner learner, FlatParameters parameters, long seed) {
    parameters.clearGradients();
    learner.learn(BATCH, WEIGHT, 1, seed, layer -> {});
    parameters.collectGradients();
    return parameters.gradients().toFloatArray();
  }

  /**
   * Along random directions, in every mode; routing is a step function, so a direction is small.
   */
  @ParameterizedTest
  @EnumSource(ForwardMode.class)
  void agreesWithFiniteDifferences(ForwardMode mode) {
    try (var tiny = new Tiny(Dtype.F64, 0, 3);
        var parameters = new FlatParameters(tiny.manager, tiny.parameters)) {
      var learner =
          new LlamaLearner(
              tiny.llama, Tiny.context(2, mode), Recompute.ALL, Optional.empty(), 3, 7);
      var gradient = gradients(learner, parameters, 1);
      var random = new Random(9);
      var start = parameters.values().toFloatArray();
      for (int trial = 0; trial < 4; trial++) {
        var direction = new float[start.length];
        double expected = 0;
        for (int i = 0; i < direction.length; i++) {
          direction[i] = random.nextBoolean() ? 1 : -1;
          expected += direction[i] * (double) gradient[i];
        }
        double step = 1f / (1 << 14);
        double up = lossAt(learner, parameters, start, direction, step);
        double down = lossAt(learner, parameters, start, direction, -step);
        double measured = (up - down) / (2 * step);
        assertThat(measured).isCloseTo(expected, within(2e-3 * Math.max(1, Math.abs(expected))));
      }
    }
  }

  private static double lossAt(
      LlamaLearner learner, FlatParameters parameters, float[] start, float[] way, double step) {
    var moved = new float[start.length];
    for (int i = 0; i < start.length; i++) {
      moved[i] = (float) (start[i] + step * way[i]);
    }
    try (var scope = parameters.manager().newSubManager()) {
      org.meteora.tensor.Ops.copy(parameters.values(), scope.create(moved));
    }
    parameters.publish();
    return loss(learner.evaluate(BATCH));
  }

  /**
   * The layers' backward in Java with dropout, along the gradient itself, where float32 has digits
   * enough: all adapters on every token, since routing is a step function.
   */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void droppedInputsAgreeWithFiniteDifferences(boolean checkpointing) {
    try (var tiny = new Tiny(Dtype.F32, 0.3, 3);
        var parameters = new FlatParameters(tiny.manager, tiny.parameters)) {
      var learner =
          new LlamaLearner(
              tiny.llama,
              Tiny.context(3, ForwardMode.AUTO),
              checkpointing ? Recompute.ALL : Recompute.NONE,
              3);
      var start = parameters.values().toFloatArray();
      var gradient = gradients(learner, parameters, 7);
      double norm = Math.sqrt(squares(new float[gradient.length], gradient));
      var losses = new double[2];
      for (int side = 0; side < 2; side++) {
        var moved = start.clone();
        for (int i = 0; i < moved.length; i++) {
          moved[i] += (float) ((side == 0 ? 1e-4 : -1e-4) * gradient[i] / norm);
        }
        try (var scope = parameters.manager().newSubManager()) {
          org.meteora.tensor.Ops.copy(parameters.values(), scope.create(moved));
        }
        parameters.publish();
        losses[side] = loss(learner.learn(BATCH, WEIGHT, 1, 7, layer -> {}));
        assertThat(loss(learner.evaluate(BATCH))).isNotCloseTo(losses[side], within(0.1));
      }
      assertThat((losses[0] - losses[1]) / 2e-4).isCloseTo(norm, within(0.01 * norm));
    }
  }

  /** One adapter alone is the base model with B A in its weights; none is the base model. */
  @Test
  void referencesAreTheBaseWithAnAdapterInItsWeightsAndWithout() {
    for (int adapter = 0; adapter < 3; adapter++) {
      try (var tiny = new Tiny(Dtype.F32, 0, 3);
          var merged = new Tiny(Dtype.F32, 0, 3)) {
        int from = Tiny.RANKS[0] * (adapter > 0 ? 1 : 0) + Tiny.RANKS[1] * (adapter > 1 ? 1 : 0);
        for (var layer : merged.llama.layers()) {
          for (var linear : layer.projections()) {
            var bank = linear.bank();
            var a = Ops.narrow(bank.loraA(), 0, from, Tiny.RANKS[adapter]);
            var b = Ops.narrow(bank.loraB(), 1, from, Tiny.RANKS[adapter]);
            linear.weight().addi(b.matMul(a).mul(bank.scales()[adapter]));
          }
        }
        var before = tiny.parameters.values().stream().map(NDArray::toFloatArray).toList();
        var learner =
            new LlamaLearner(tiny.llama, Tiny.context(2, ForwardMode.AUTO), Recompute.ALL, 3);
        var alone = learner.reference(BATCH, OptionalInt.of(adapter));
        var expected =
            new LlamaLearner(merged.llama, Tiny.context(2, ForwardMode.AUTO), Recompute.ALL, 3)
                .reference(BATCH, OptionalInt.empty());
        assertThat(alone.languageModel())
            .isCloseTo(expected.languageModel(), within(1e-4 * expected.languageModel()));
        assertThat(learner.reference(BATCH, OptionalInt.empty()).languageModel())
            .isNotCloseTo(alone.languageModel(), within(0.1));
        assertThat(alone.gates()).isZero();
        var after = tiny.parameters.values().stream().map(NDArray::toFloatArray).toList();
        assertThat(after).usingRecursiveComparison().isEqualTo(before);
      }
    }
  }

  @Test
  void lossesOfPromptsAndAnswersAddUp() {
    try (var tiny = new Tiny(Dtype.F32, 0, 3)) {
      var samples = ResumeTest.samples().subList(0, 4).stream().map(LlamaLearnerTest::halved);
      var whole = new Batch(samples.toList(), false);
      var learner =
          new LlamaLearner(tiny.llama, Tiny.context(2, ForwardMode.AUTO), Recompute.ALL, 3);
      var sums = learner.evaluate(whole);
      double answers = Arrays.stream(sums.answer()).sum();
      assertThat(Arrays.stream(sums.prompt()).sum() + answers)
          .isCloseTo(sums.languageModel(), within(1e-6));
      assertThat(learner.evaluate(new Batch(whole.samples(), true)).languageModel())
          .isCloseTo(answers, within(1e-4));
      for (int row = 0; row < whole.rows(); row++) {
        var sample = whole.samples().get(row);
        assertThat(whole.promptLabels(row)).isEqualTo(sample.promptTokens() - 1);
        assertThat(whole.answerLabels(row)).isEqualTo(sample.length() - sample.promptTokens());
      }
    }
  }

  private static TrainingSample halved(TrainingSample sample) {
    return new TrainingSample(sample.id(), sample.tokens(), sample.length() / 2 + 1, sample.task());
  }

  /** Dropout included: the second forward pass drops what the first did. */
  @Test
  void recomputingGivesTheSameGradients() {
    try (var tiny = new Tiny(Dtype.F32, 0.3, 3);
        var parameters = new FlatParameters(tiny.manager, tiny.parameters)) {
      var context = Tiny.context(2, ForwardMode.AUTO);
      var recorded =
          gradients(new LlamaLearner(tiny.llama, context, Recompute.NONE, 3), parameters, 7);
      var recomputed =
          gradients(new LlamaLearner(tiny.llama, context, Recompute.ALL, 3), parameters, 7);
      var other = gradients(new LlamaLearner(tiny.llama, context, Recompute.ALL, 3), parameters, 8);
      assertThat(distance(recomputed, recorded)).isLessThan(1e-5);
      assertThat(distance(other, recorded)).isGreaterThan(1e-2);
    }
  }

  private static double distance(float[] a, float[] b) {
    return Math.sqrt(squares(a, b) / squares(new float[b.length], b));
  }

  private static double squares(float[] a, float[] b) {
    double sum = 0;
    for (int i = 0; i < a.length; i++) {
      sum += Math.pow(a[i] - b[i], 2);
    }
    return sum;
  }

  /** The layers' backward in Java against libtorch's, with unequal ranks and scales. */
  @ParameterizedTest
  @ValueSource(ints = {1, 2, 3})
  void javasBackwardAgreesWithAutograd(int topK) {
    try (var tiny = new Tiny(Dtype.F32, 0, 3);
        var parameters = new FlatParameters(tiny.manager, tiny.parameters)) {
      var contexts = List.of(ForwardMode.AUTO, ForwardMode.REFERENCE);
      var both =
          contexts.stream()
              .map(
                  mode -> new LlamaLearner(tiny.llama, Tiny.context(topK, mode), Recompute.NONE, 3))
              .map(learner -> gradients(learner, parameters, 7))
              .toList();
      assertThat(distance(both.get(0), both.get(1))).isLessThan(1e-5);
    }
  }

  /**
   * Samples that lie one after another in a pass give what each gives by itself: no sample sees its
   * neighbour, in any mode, with losses of all tokens and of answers alone.
   */
  @ParameterizedTest
  @EnumSource(ForwardMode.class)
  void aBatchGivesTheSumOfItsSamples(ForwardMode mode) {
    for (boolean responseOnly : new boolean[] {false, true}) {
      var samples = BATCH.samples().stream().map(LlamaLearnerTest::halved).toList();
      var batch = new Batch(samples, responseOnly);
      try (var tiny = new Tiny(Dtype.F32, 0, 3);
          var parameters = new FlatParameters(tiny.manager, tiny.parameters)) {
        var learner =
            new LlamaLearner(
                tiny.llama, Tiny.context(2, mode), Recompute.NONE, Optional.empty(), 3, 7);
        var together = learner.learn(batch, WEIGHT, 1, 1, layer -> {});
        parameters.collectGradients();
        var gradient = parameters.gradients().toFloatArray();
        parameters.clearGradients();
        double languageModel = 0;
        double gate = 0;
        for (int row = 0; row < batch.rows(); row++) {
          var single = new Batch(List.of(samples.get(row)), responseOnly);
          var alone = learner.learn(single, WEIGHT, 1, 1, layer -> {});
          parameters.collectGradients();
          languageModel += alone.languageModel();
          gate += alone.gate();
          assertThat(together.answer()[row]).isCloseTo(alone.answer()[0], within(1e-4));
          assertThat(together.prompt()[row]).isCloseTo(alone.prompt()[0], within(1e-4));
          assertThat(together.right()[row]).isEqualTo(alone.right()[0]);
          assertThat(together.dominated()[row]).isEqualTo(alone.dominated()[0]);
          assertThat(learner.evaluate(single).answer()[0])
              .isCloseTo(alone.answer()[0], within(1e-4));
        }
        assertThat(together.languageModel()).isCloseTo(languageModel, within(1e-4));
        assertThat(together.gate()).isCloseTo(gate, within(1e-3));
        assertThat(distance(gradient, parameters.gradients().toFloatArray())).isLessThan(1e-5);
      }
    }
  }

  @Test
  void layersComputedAgainGiveTheSameBits() {
    try (var tiny = new Tiny(Dtype.F32, 0.1, 3);
        var parameters = new FlatParameters(tiny.manager, tiny.parameters)) {
      var context = Tiny.context(2, ForwardMode.AUTO);
      var all =
          Arrays.stream(Recompute.values())
              .map(which -> LlamaLearner.of(tiny.llama, context, which, 3, parameters))
              .map(learner -> gradients(learner, parameters, 7))
              .toList();
      assertThat(all.get(1)).isEqualTo(all.get(0));
      assertThat(all.get(2)).isEqualTo(all.get(0));
    }
  }

  @Test
  void bfloat16IsClose() {
    try (var full = new Tiny(Dtype.F32, 0, 3);
        var half = new Tiny(Dtype.BF16, 0, 3);
        var fullParameters = new FlatParameters(full.manager, full.parameters);
        var halfParameters = new FlatParameters(half.manager, half.parameters)) {
      // all adapters on every token: else rounding may choose another one of two that are close
      var all = Tiny.context(3, ForwardMode.AUTO);
      var a = gradients(new LlamaLearner(full.llama, all, Recompute.ALL, 3), fullParameters, 7);
      var b = gradients(new LlamaLearner(half.llama, all, Recompute.ALL, 3), halfParameters, 7);
      // 8 bits of mantissa through two layers of large random weights
      assertThat(distance(b, a)).isLessThan(0.2);
    }
  }

  /** What the graph holds must not depend on Java objects that nobody else holds. */
  @ParameterizedTest
  @EnumSource(
      value = ForwardMode.class,
      names = {"AUTO", "REFERENCE", "ALL", "MASKED"})
  void theGarbageCollectorChangesNothing(ForwardMode mode) throws InterruptedException {
    var done = new AtomicBoolean();
    var collector =
        Thread.ofPlatform()
            .start(
                () -> {
                  while (!done.get()) {
                    System.gc();
                    java.nio.ByteBuffer.allocateDirect(4).putFloat(0, Float.NaN);
                  }
                });
    try (var tiny = new Tiny(Dtype.F32, 0.1, 3);
        var parameters = new FlatParameters(tiny.manager, tiny.parameters)) {
      for (boolean checkpointing : new boolean[] {true, false}) {
        var learner =
            new LlamaLearner(
                tiny.llama,
                Tiny.context(2, mode),
                checkpointing ? Recompute.ALL : Recompute.NONE,
                3);
        var first = gradients(learner, parameters, 7);
        for (int i = 0; i < 3; i++) {
          assertThat(gradients(learner, parameters, 7)).isEqualTo(first);
        }
      }
    } finally {
      done.set(true);
      collector.join();
    }
  }
}
