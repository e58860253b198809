package org.meteora.tensor;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.concurrent.atomic.AtomicIntegerArray;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;

class WorkersTest {
  @Test
  void everyTaskRunsOnce() {
    for (int tasks : new int[] {1, 2, 3, 100}) {
      var counts = new AtomicIntegerArray(tasks);
      for (int round = 1; round <= 50; round++) {
        Workers.run(tasks, counts::incrementAndGet);
        assertThat(IntStream.range(0, tasks).map(counts::get)).containsOnly(round);
      }
    }
    assertThat(Workers.count()).isPositive();
  }

  /** From several threads at once, each with a team of its own. */
  @Test
  void callersDoNotDisturbEachOther() {
    var sums =
        IntStream.range(0, 4)
            .parallel()
            .map(
                caller -> {
                  var counts = new AtomicIntegerArray(7);
                  for (int round = 0; round < 20; round++) {
                    Workers.run(7, i -> counts.addAndGet(i, i + caller));
                  }
                  return IntStream.range(0, 7).map(counts::get).sum();
                })
            .toArray();
    assertThat(sums).containsExactly(420, 560, 700, 840);
  }

  @Test
  void whatATaskThrowsComesBack() {
    assertThatThrownBy(
            () ->
                Workers.run(
                    4,
                    i -> {
                      if (i == 3) {
                        throw new IllegalArgumentException("three");
                      }
                    }))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessage("three");
  }
}
