package org.meteora.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.List;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.meteora.UserException;
import org.meteora.model.FrozenWeights;
import org.meteora.model.LlamaTraining.Recompute;
import org.meteora.moe.ForwardMode;
import org.meteora.tensor.Dtype;
import org.meteora.train.batch.Batch;
import org.meteora.train.batch.TrainingSample;

@Timeout(60)
class TogetherTest {
  private static Batch batch(int... lengths) {
    return new Batch(
        java.util.Arrays.stream(lengths)
            .mapToObj(
                length -> {
                  var tokens = new int[length];
                  java.util.Arrays.setAll(tokens, i -> (5 * i + length) % 23);
                  return new TrainingSample("s" + length, tokens, 2, 0);
                })
            .toList(),
        true);
  }

  private static Tiny tiny() {
    var tiny = new Tiny(Dtype.F32, 0, 7);
    tiny.parameters.values().forEach(tensor -> tensor.setRequiresGradient(true));
    return tiny;
  }

  /** Losses of rows padded to a longer one beside them; 1e-4 of sums near 20. */
  @Test
  void everyRunGetsTheSumsOfItsOwnAdapter() {
    var batches = List.of(batch(4, 6), batch(9), batch(5, 5, 7));
    try (var tiny = tiny()) {
      var sums =
          together(tiny, 3)
              .run(
                  (i, learner, failed) ->
                      learner.learn(batches.get(i), 0.1, 0, i, layer -> {}).answer());
      var expected =
          together(tiny, 3).run((i, learner, failed) -> learner.evaluate(batches.get(i)).answer());
      for (int i = 0; i < 3; i++) {
        assertThat(sums.get(i))
            .containsExactly(expected.get(i), org.assertj.core.api.Assertions.within(1e-4));
      }
      assertThat(sums.get(0)[0]).isNotEqualTo(sums.get(1)[0]);
    }
  }

  private static Together together(Tiny tiny, int adapters) {
    var context = Tiny.context(1, ForwardMode.AUTO);
    return new Together(new LlamaLearner(tiny.llama, context, Recompute.ALL, 0), context, adapters);
  }

  /** What an allocator keeps for each thread is a pass's once, not once an adapter. */
  @Test
  void allTrainingPassesAreOfTheThreadThatRunsThem() {
    var threads = ConcurrentHashMap.<Thread>newKeySet();
    var watched =
        new FrozenWeights() {
          @Override
          public void use(int part, int next) {
            threads.add(Thread.currentThread());
          }

          @Override
          public Forward begin() {
            return () -> {};
          }

          @Override
          public boolean isResident() {
            return true;
          }
        };
    try (var tiny = new Tiny(Dtype.F32, 0, 7, watched)) {
      tiny.parameters.values().forEach(tensor -> tensor.setRequiresGradient(true));
      together(tiny, 3)
          .run(
              (i, learner, failed) -> {
                for (int step = 0; step <= i; step++) { // runs of 1, 2 and 3 steps
                  learner.learn(batch(4), 0.1, 0, step, layer -> {});
                }
                return i;
              });
    }
    assertThat(threads).containsExactly(Thread.currentThread());
  }

  @Test
  void whenOneFailsTheOthersEndAfterTheirStep() {
    try (var tiny = tiny()) {
      var ended = new AtomicInteger();
      assertThatThrownBy(
              () ->
                  together(tiny, 3)
                      .run(
                          (i, learner, failed) -> {
                            if (i == 1) {
                              learner.learn(batch(4), 1, 0, 1, layer -> {});
                              throw new UserException("the loss of b is not finite");
                            }
                            while (!failed.getAsBoolean()) {
                              learner.learn(batch(5, 3), 1, 0, 1, layer -> {});
                            }
                            return ended.incrementAndGet();
                          }))
          .isInstanceOf(UserException.class)
          .hasMessage("the loss of b is not finite");
      assertThat(ended).hasValue(2);
    }
  }
}
