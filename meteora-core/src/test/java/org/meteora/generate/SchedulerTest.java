package org.meteora.generate;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.RepeatedTest;
import org.junit.jupiter.api.RepetitionInfo;
import org.junit.jupiter.api.Test;
import org.meteora.generate.Scheduler.Limits;

class SchedulerTest {
  /**
   * Random arrivals against a plain simulation that keeps who waits and who runs in two lists:
   * every sequence ends, none is lost or run twice, nobody overtakes, and memory is never exceeded.
   */
  @RepeatedTest(60)
  void randomArrivals(RepetitionInfo repetition) {
    var random = new Random(repetition.getCurrentRepetition());
    int block = 1 + random.nextInt(8);
    int most = 1 + random.nextInt(6);
    long kvCapacity = 30 + random.nextInt(200);
    boolean pads = random.nextBoolean();
    var scheduler = new Scheduler(new Limits(most, kvCapacity, block, 40, pads));
    var length = new HashMap<Integer, Integer>();
    var known = new HashMap<Integer, Integer>();
    var end = new HashMap<Integer, Integer>();
    var waiting = new ArrayList<Integer>();
    var running = new ArrayList<Integer>();
    var gone = new HashSet<Integer>();
    int all = 40;
    int arrived = 0;
    for (int round = 0; gone.size() < all; round++) {
      assertThat(round).as("rounds").isLessThan(20_000);
      while (arrived < all && (random.nextInt(3) == 0 || waiting.isEmpty() && running.isEmpty())) {
        int tokens = 1 + random.nextInt(random.nextInt(10) == 0 ? 300 : 30);
        length.put(arrived, tokens);
        end.put(arrived, tokens + 1 + random.nextInt(25));
        waiting.addLast(arrived);
        known.put(arrived, random.nextInt(tokens));
        scheduler.add(arrived, tokens, known.get(arrived));
        arrived++;
      }
      boolean mayAdmit = running.isEmpty() || random.nextInt(4) > 0;
      var plan = scheduler.next(mayAdmit);
      assertThat(mayAdmit || plan.admitted().isEmpty()).isTrue();
      for (int each : plan.preempted()) {
        assertThat(running.removeLast()).as("the last to join leaves first").isEqualTo(each);
        waiting.addFirst(each);
      }
      for (int each : plan.rejected()) {
        assertThat(columns(1, length.get(each), block))
            .as("too long alone")
            .isGreaterThan(kvCapacity);
        assertThat(waiting.remove((Integer) each) || running.remove((Integer) each)).isTrue();
        gone.add(each);
      }
      long width = 0;
      long sum = 0;
      for (int each : plan.admitted()) {
        assertThat(waiting.removeFirst()).as("nobody overtakes").isEqualTo(each);
        running.addLast(each);
        width = Math.max(width, length.get(each) - known.get(each));
        sum += length.get(each) - known.get(each);
      }
      long computed = pads ? plan.admitted().size() * width : sum;
      assertThat(plan.admitted().size() <= 1 || computed <= 40).isTrue();
      assertThat(running).hasSizeLessThanOrEqualTo(most);
      int longest = running.stream().mapToInt(length::get).max().orElse(0);
      assertThat(columns(running.size(), longest, block)).isLessThanOrEqualTo(kvCapacity);
      assertThat(scheduler.columns()).isEqualTo(columns(running.size(), longest, block));
      assertThat(scheduler.running()).isEqualTo(running.size());
      assertThat(scheduler.waiting()).isEqualTo(waiting.size());
      assertThat(running.isEmpty())
          .as("somebody runs")
          .isEqualTo(running.isEmpty() && (waiting.isEmpty() || !mayAdmit));
      for (int each : List.copyOf(running)) {
        length.merge(each, 1, Integer::sum);
        scheduler.grew(each);
        if (length.get(each) >= end.get(each)) {
          running.remove((Integer) each);
          scheduler.remove(each);
          gone.add(each);
        }
      }
    }
    assertThat(gone).hasSize(all);
  }

  private static long columns(int sequences, int longest, int block) {
    int blocks = 0;
    while (blocks * block < longest) {
      blocks++;
    }
    return (long) sequences * blocks * block;
  }

  /** While prompts are being run nobody else joins; those that run may still have to leave. */
  @Test
  void nobodyJoinsWhileOthersAreAboutTo() {
    var scheduler = new Scheduler(new Limits(4, 40, 8, 1000, true));
    for (int i = 0; i < 3; i++) {
      scheduler.add(i, 6, 0);
    }
    assertThat(scheduler.next(true).admitted()).containsExactly(0, 1);
    scheduler.remove(1);
    assertThat(scheduler.next(false).admitted()).isEmpty();
    assertThat(scheduler.next(true).admitted()).containsExactly(2);
    for (int i = 0; i < 15; i++) {
      scheduler.grew(0);
    }
    assertThat(scheduler.next(false).preempted()).containsExactly(2);
  }

  /** Those that another process has are dropped when it is their turn, and take no place. */
  @Test
  void thoseThatAreNotWantedTakeNoPlace() {
    var asked = new ArrayList<Integer>();
    var scheduler =
        new Scheduler(
            new Limits(2, Long.MAX_VALUE, 8, 1000, true),
            each -> {
              asked.add(each);
              return each % 3 == 1;
            });
    for (int i = 0; i < 9; i++) {
      scheduler.add(i, 5, 0);
    }
    assertThat(scheduler.next(true).admitted()).containsExactly(1, 4);
    assertThat(asked).containsExactly(0, 1, 2, 3, 4);
    scheduler.remove(1);
    assertThat(scheduler.next(true).admitted()).containsExactly(7);
    scheduler.remove(4);
    scheduler.remove(7);
    assertThat(scheduler.next(true).admitted()).isEmpty();
    assertThat(scheduler.waiting() + scheduler.running()).isZero();
  }

  @Test
  void fewWaitForEachOther() {
    var scheduler = new Scheduler(new Limits(32, Long.MAX_VALUE, 8, 1000, true));
    for (int i = 0; i < 40; i++) {
      scheduler.add(i, 5, 0);
    }
    assertThat(scheduler.next(true).admitted()).hasSize(32);
    scheduler.remove(3);
    assertThat(scheduler.next(true).admitted()).isEmpty();
    scheduler.remove(4);
    assertThat(scheduler.next(true).admitted()).containsExactly(32, 33);
  }

  @Test
  void oneThatNobodyJoinsDoesNotWaitForLong() {
    var scheduler = new Scheduler(new Limits(32, Long.MAX_VALUE, 8, 1000, true));
    for (int i = 0; i < 40; i++) {
      scheduler.add(i, 5, 0);
    }
    assertThat(scheduler.next(true).admitted()).hasSize(32);
    scheduler.remove(3);
    int steps = 1;
    while (scheduler.next(true).admitted().isEmpty()) {
      steps++;
    }
    assertThat(steps).isEqualTo(32); // its place has stood empty for as long as a step of all
  }

  @Test
  void theLastPlaceIsFilledAsTheFirstAre() {
    var scheduler = new Scheduler(new Limits(64, Long.MAX_VALUE, 8, 9 * 5, false));
    for (int i = 0; i < 128; i++) {
      scheduler.add(i, 5, 0);
    }
    for (int i = 0; i < 7; i++) {
      assertThat(scheduler.next(true).admitted()).hasSize(9);
    }
    assertThat(scheduler.next(true).admitted()).containsExactly(63);
    assertThat(scheduler.next(true).admitted()).isEmpty();
  }

  @Test
  void whoFindsNoMemoryWaitsAndIsNotLost() {
    var scheduler = new Scheduler(new Limits(4, Long.MAX_VALUE, 8, 1000, true));
    for (int i = 0; i < 3; i++) {
      scheduler.add(i, 5, 0);
    }
    assertThat(scheduler.next(true).admitted()).containsExactly(0, 1, 2);
    scheduler.preempt(2);
    assertThat(scheduler.next(true).admitted()).isEmpty();
    scheduler.remove(0);
    assertThat(scheduler.next(true).admitted()).containsExactly(2);
  }

  @Test
  void paddingCountsInAPrefill() {
    var padded = longBeforeMany(true);
    assertThat(padded.next(true).admitted()).containsExactly(0);
    assertThat(padded.next(true).admitted()).hasSize(100);
    assertThat(longBeforeMany(false).next(true).admitted()).hasSize(101);
  }

  private static Scheduler longBeforeMany(boolean pads) {
    var scheduler = new Scheduler(new Limits(128, Long.MAX_VALUE, 8, 2048, pads));
    scheduler.add(0, 1500, 0);
    for (int i = 1; i < 101; i++) {
      scheduler.add(i, 5, 0);
    }
    return scheduler;
  }
}
