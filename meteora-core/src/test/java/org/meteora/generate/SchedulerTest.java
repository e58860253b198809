package org.meteora.generate;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.OptionalInt;
import java.util.Random;
import java.util.stream.IntStream;
import org.junit.jupiter.api.RepeatedTest;
import org.junit.jupiter.api.RepetitionInfo;
import org.junit.jupiter.api.Test;
import org.meteora.generate.Scheduler.Limits;

class SchedulerTest {
  /** Sequences that are lists of tokens, wanted, and that share nothing, unless it is said. */
  private static class Plain implements Scheduler.Sequences {
    final Map<Integer, int[]> tokens = new HashMap<>();

    void append(int sequence, int token) {
      int[] its = Arrays.copyOf(tokens.get(sequence), tokens.get(sequence).length + 1);
      its[its.length - 1] = token;
      tokens.put(sequence, its);
    }

    @Override
    public int[] tokens(int sequence) {
      return tokens.get(sequence);
    }

    @Override
    public int most(int sequence) {
      return tokens(sequence).length + 1;
    }

    @Override
    public int routing(int sequence) {
      return -1;
    }

    @Override
    public boolean goesAhead(int sequence, int known) {
      return false;
    }

    @Override
    public boolean isWanted(int sequence) {
      return true;
    }
  }

  /** A scheduler and its sequences. */
  private record Queue(Scheduler scheduler, Plain sequences) {
    static Queue of(Limits limits, KvBlocks blocks) {
      return of(limits, blocks, new Plain());
    }

    static Queue of(Limits limits, KvBlocks blocks, Plain sequences) {
      return new Queue(new Scheduler(limits, blocks, sequences), sequences);
    }

    void add(int sequence, int... tokens) {
      sequences.tokens.put(sequence, tokens);
      scheduler.add(sequence, tokens.length);
    }

    void grow(int sequence) {
      scheduler.computed(sequence);
      sequences.append(sequence, 1);
      scheduler.grew(sequence);
    }

    List<Integer> admitted() {
      return admitted(1000);
    }

    List<Integer> admitted(long tokens) {
      return scheduler.next(tokens).admitted();
    }
  }

  private static KvBlocks plenty() {
    return new KvBlocks(10_000, 8);
  }

  /**
   * Random arrivals of sequences, some of which begin alike, against a plain simulation that keeps
   * who waits and who runs in two lists, and for each block what was last computed into it: every
   * sequence ends, none is lost or run twice, nobody overtakes, no more blocks are taken than there
   * are, each has the blocks that it needs, and what it shares is what it would have computed.
   */
  @RepeatedTest(100)
  void randomArrivals(RepetitionInfo repetition) {
    var random = new Random(repetition.getCurrentRepetition());
    int size = 1 + random.nextInt(8);
    int most = 1 + random.nextInt(6);
    int count = 4 + random.nextInt(40);
    boolean pads = random.nextBoolean();
    var routing = new HashMap<Integer, Integer>();
    var sequences =
        new Plain() {
          @Override
          public int routing(int sequence) {
            return routing.get(sequence);
          }

          @Override
          public boolean goesAhead(int sequence, int known) {
            return sequence % 7 == 3 && known < tokens(sequence).length / 2;
          }
        };
    var blocks = new KvBlocks(count, size);
    var scheduler = new Scheduler(new Limits(most, pads, OptionalInt.empty()), blocks, sequences);
    var computed = new HashMap<Integer, String>(); // of each block
    var end = new HashMap<Integer, Integer>();
    var waiting = new ArrayList<Integer>();
    var running = new ArrayList<Integer>();
    var gone = new HashSet<Integer>();
    int[] header = random.ints(50, 0, 9).toArray();
    int all = 40;
    int arrived = 0;
    for (int round = 0; gone.size() < all; round++) {
      assertThat(round).as("rounds").isLessThan(20_000);
      while (arrived < all && (random.nextInt(3) == 0 || waiting.isEmpty() && running.isEmpty())) {
        int length = 1 + random.nextInt(random.nextInt(10) == 0 ? 300 : 30);
        int[] tokens = random.ints(length, 0, 9).toArray();
        System.arraycopy(header, 0, tokens, 0, Math.min(random.nextInt(50), tokens.length));
        sequences.tokens.put(arrived, tokens);
        routing.put(arrived, random.nextInt(3) - 1);
        end.put(arrived, length + 1 + random.nextInt(25));
        waiting.addLast(arrived);
        scheduler.add(arrived, length);
        arrived++;
      }
      boolean mayAdmit = running.isEmpty() || random.nextInt(4) > 0;
      var plan = scheduler.next(mayAdmit ? 40 : 0);
      assertThat(mayAdmit || plan.admitted().isEmpty()).isTrue();
      for (int each : plan.preempted()) {
        assertThat(running.removeLast()).as("the last to join leaves first").isEqualTo(each);
        waiting.addFirst(each);
      }
      for (int each : plan.rejected()) {
        int needed = (sequences.tokens(each).length + size) / size;
        assertThat(needed).as("too long alone").isGreaterThanOrEqualTo(count);
        assertThat(waiting.remove((Integer) each) || running.remove((Integer) each)).isTrue();
        gone.add(each);
      }
      long width = 0;
      long sum = 0;
      for (int each : plan.admitted()) {
        assertThat(waiting.removeFirst()).as("nobody overtakes").isEqualTo(each);
        running.addLast(each);
        int[] its = sequences.tokens(each);
        int known = scheduler.known(each);
        assertThat(known).isLessThan(its.length);
        width = Math.max(width, its.length - known);
        sum += its.length - known;
        for (int i = 0; i < known / size; i++) {
          assertThat(computed.get(scheduler.blocks(each)[i]))
              .as("known")
              .isEqualTo(content(routing.get(each), its, (i + 1) * size));
        }
      }
      long together = pads ? plan.admitted().size() * width : sum;
      assertThat(plan.admitted().size() <= 1 || together <= 40).isTrue();
      assertThat(running).hasSizeLessThanOrEqualTo(most);
      var taken = new HashMap<Integer, String>();
      for (int each : running) {
        int[] table = scheduler.blocks(each);
        int length = sequences.tokens(each).length;
        assertThat(table.length * size).isBetween(length, length + size);
        for (int i = 0; i < table.length; i++) {
          int upTo = (i + 1) * size;
          var its =
              upTo < length
                  ? content(routing.get(each), sequences.tokens(each), upTo)
                  : "of " + each;
          var other = taken.putIfAbsent(table[i], its);
          assertThat(other == null || other.equals(its) && routing.get(each) >= 0)
              .as("a block of two sequences holds what both have")
              .isTrue();
        }
      }
      assertThat(taken).hasSizeLessThanOrEqualTo(count);
      assertThat(scheduler.blocksHeld()).isEqualTo(taken.size());
      assertThat(blocks.taken()).isEqualTo(taken.size());
      assertThat(scheduler.running()).isEqualTo(running.size());
      assertThat(scheduler.waiting()).isEqualTo(waiting.size());
      assertThat(running.isEmpty())
          .as("somebody runs")
          .isEqualTo(running.isEmpty() && (waiting.isEmpty() || !mayAdmit));
      for (int each : List.copyOf(running)) {
        int[] its = sequences.tokens(each);
        int[] table = scheduler.blocks(each);
        for (int i = scheduler.known(each) / size; i < its.length / size; i++) {
          computed.put(table[i], content(routing.get(each), its, (i + 1) * size));
        }
        scheduler.computed(each);
        sequences.append(each, random.nextInt(9));
        scheduler.grew(each);
        if (sequences.tokens(each).length >= end.get(each)) {
          running.remove((Integer) each);
          scheduler.remove(each);
          gone.add(each);
        }
      }
    }
    assertThat(gone).hasSize(all);
    assertThat(blocks.taken()).isZero();
  }

  private static String content(int routing, int[] tokens, int length) {
    return routing + Arrays.toString(Arrays.copyOf(tokens, length));
  }

  /** While prompts are being run nobody else joins; those that run may still have to leave. */
  @Test
  void nobodyJoinsWhileOthersAreAboutTo() {
    var queue = Queue.of(new Limits(4, true, OptionalInt.empty()), new KvBlocks(5, 8));
    for (int i = 0; i < 3; i++) {
      queue.add(i, new int[6]);
    }
    assertThat(queue.admitted()).containsExactly(0, 1);
    queue.scheduler.remove(1);
    assertThat(queue.scheduler.next(0).admitted()).isEmpty();
    assertThat(queue.admitted()).containsExactly(2);
    for (int i = 0; i < 34; i++) {
      assertThat(queue.scheduler.next(0).preempted().contains(2)).isEqualTo(i == 27);
      queue.grow(0);
    }
  }

  /** One that is put back finds what it had computed, when nobody needed its blocks. */
  @Test
  void oneThatIsPutBackGoesOn() {
    var shares =
        new Plain() {
          @Override
          public int routing(int sequence) {
            return 0;
          }
        };
    var queue = Queue.of(new Limits(4, true, OptionalInt.empty()), new KvBlocks(6, 4), shares);
    queue.add(0, 1, 2, 3);
    queue.add(1, 7, 8, 9);
    assertThat(queue.admitted()).containsExactly(0, 1);
    for (int i = 0; i < 9; i++) {
      assertThat(queue.scheduler.next(0).preempted()).isEmpty();
      queue.grow(0);
      queue.grow(1);
    }
    // three blocks each: the next that the first needs is of the second
    queue.grow(0);
    assertThat(queue.scheduler.next(0).preempted()).containsExactly(1);
    queue.scheduler.remove(0);
    assertThat(queue.admitted()).containsExactly(1);
    assertThat(queue.scheduler.known(1)).isEqualTo(8);
    assertThat(queue.scheduler.tokensSpared()).isEqualTo(8);
    assertThat(queue.sequences.tokens(1)).hasSize(12);
  }

  /** What others begin with is run first, and they join behind it. */
  @Test
  void othersWaitForWhoGoesAhead() {
    var sequences =
        new Plain() {
          @Override
          public int routing(int sequence) {
            return sequence == 4 ? -1 : 0;
          }

          @Override
          public boolean goesAhead(int sequence, int known) {
            return sequence != 0 && known == 0;
          }
        };
    var queue = Queue.of(new Limits(8, true, OptionalInt.empty()), new KvBlocks(100, 2), sequences);
    queue.add(0, 9, 9);
    for (int i = 1; i < 5; i++) {
      queue.add(i, 1, 2, 3, 4, 5 + i);
    }
    assertThat(queue.admitted()).containsExactly(0);
    assertThat(queue.admitted()).containsExactly(1);
    queue.grow(1);
    assertThat(queue.admitted()).containsExactly(2, 3);
    assertThat(queue.scheduler.blocks(3)).startsWith(queue.scheduler.blocks(1)[0]);
    assertThat(queue.scheduler.known(3)).isEqualTo(4);
    assertThat(queue.admitted()).containsExactly(4);
    assertThat(queue.scheduler.known(4)).isZero();
    assertThat(queue.scheduler.tokensSpared()).isEqualTo(8);
  }

  /** Those that another process has are dropped when it is their turn, and take no place. */
  @Test
  void thoseThatAreNotWantedTakeNoPlace() {
    var asked = new ArrayList<Integer>();
    var queue =
        Queue.of(
            new Limits(2, true, OptionalInt.empty()),
            plenty(),
            new Plain() {
              @Override
              public boolean isWanted(int sequence) {
                asked.add(sequence);
                return sequence % 3 == 1;
              }
            });
    for (int i = 0; i < 9; i++) {
      queue.add(i, new int[5]);
    }
    assertThat(queue.admitted()).containsExactly(1, 4);
    assertThat(asked).containsExactly(0, 1, 2, 3, 4);
    queue.scheduler.remove(1);
    assertThat(queue.admitted()).containsExactly(7);
    queue.scheduler.remove(4);
    queue.scheduler.remove(7);
    assertThat(queue.admitted()).isEmpty();
    assertThat(queue.scheduler.waiting() + queue.scheduler.running()).isZero();
  }

  /**
   * Where prompts are run by themselves in passes: nobody is put back, and answers are not shared.
   */
  @Test
  void wholePassesOfPromptsAreShared() {
    var sequences =
        new Plain() {
          @Override
          public int most(int sequence) {
            return 30;
          }

          @Override
          public int routing(int sequence) {
            return 0;
          }

          @Override
          public boolean goesAhead(int sequence, int known) {
            return true;
          }
        };
    var queue = Queue.of(new Limits(5, false, OptionalInt.of(8)), new KvBlocks(25, 4), sequences);
    queue.add(0, IntStream.range(0, 21).toArray());
    queue.add(1, IntStream.range(0, 29).toArray()); // as 0 with its answer
    queue.add(2, IntStream.range(0, 16).toArray());
    queue.add(3, IntStream.range(0, 17).toArray());
    assertThat(queue.admitted()).containsExactly(0);
    for (int i = 0; i < 9; i++) {
      queue.scheduler.computed(0);
      queue.sequences.append(0, 21 + i);
      queue.scheduler.grew(0);
    }
    assertThat(queue.scheduler.blocks(0)).hasSize(8); // for 30 tokens, from the beginning
    assertThat(queue.admitted()).containsExactly(1);
    assertThat(queue.scheduler.known(1)).isEqualTo(16);
    assertThat(queue.admitted()).containsExactly(2);
    assertThat(queue.scheduler.known(2))
        .isEqualTo(8); // its last token is computed, and so its pass
    assertThat(queue.admitted()).isEmpty(); // 8, 4 and 6 more blocks are taken
    queue.scheduler.remove(0);
    assertThat(queue.admitted()).containsExactly(3);
    assertThat(queue.scheduler.known(3)).isEqualTo(16);
  }

  @Test
  void fewWaitForEachOther() {
    var queue = Queue.of(new Limits(32, true, OptionalInt.empty()), plenty());
    for (int i = 0; i < 40; i++) {
      queue.add(i, new int[5]);
    }
    assertThat(queue.admitted()).hasSize(32);
    queue.scheduler.remove(3);
    assertThat(queue.admitted()).isEmpty();
    queue.scheduler.remove(4);
    assertThat(queue.admitted()).containsExactly(32, 33);
  }

  @Test
  void oneThatNobodyJoinsDoesNotWaitForLong() {
    var queue = Queue.of(new Limits(32, true, OptionalInt.empty()), plenty());
    for (int i = 0; i < 40; i++) {
      queue.add(i, new int[5]);
    }
    assertThat(queue.admitted()).hasSize(32);
    queue.scheduler.remove(3);
    int steps = 1;
    while (queue.admitted().isEmpty()) {
      steps++;
    }
    assertThat(steps).isEqualTo(32); // its place has stood empty for as long as a step of all
  }

  @Test
  void theLastPlaceIsFilledAsTheFirstAre() {
    var queue = Queue.of(new Limits(64, false, OptionalInt.empty()), plenty());
    for (int i = 0; i < 128; i++) {
      queue.add(i, new int[5]);
    }
    for (int i = 0; i < 8; i++) {
      assertThat(queue.admitted(9 * 5)).hasSize(8); // not nine, seven times, and one
    }
    assertThat(queue.admitted(9 * 5)).isEmpty();
  }

  @Test
  void groupsThatCannotBeOfLikeSizeAreAsFewAsCanBe() {
    var queue = Queue.of(new Limits(3, false, OptionalInt.empty()), plenty());
    queue.add(0, new int[12]);
    queue.add(1, new int[12]);
    queue.add(2, new int[2]);
    assertThat(queue.admitted(20)).containsExactly(0);
    assertThat(queue.admitted(20)).containsExactly(1, 2);
  }

  @Test
  void whoFindsNoMemoryWaitsAndIsNotLost() {
    var blocks = plenty();
    var queue = Queue.of(new Limits(4, true, OptionalInt.empty()), blocks);
    for (int i = 0; i < 3; i++) {
      queue.add(i, new int[5]);
    }
    assertThat(queue.admitted()).containsExactly(0, 1, 2);
    queue.scheduler.preempt(2);
    assertThat(queue.admitted()).isEmpty();
    assertThatThrownBy(() -> queue.scheduler.limit(1, plenty()))
        .isInstanceOf(IllegalStateException.class);
    queue.scheduler.remove(0);
    assertThat(queue.admitted()).containsExactly(2);
    assertThat(blocks.taken()).isEqualTo(2);
  }

  @Test
  void paddingCountsInAPrefill() {
    var padded = longBeforeMany(true);
    assertThat(padded.admitted(2048)).containsExactly(0);
    assertThat(padded.admitted(2048)).hasSize(100);
    assertThat(longBeforeMany(false).admitted(2048)).hasSize(101);
  }

  private static Queue longBeforeMany(boolean pads) {
    var queue = Queue.of(new Limits(128, pads, OptionalInt.empty()), plenty());
    queue.add(0, new int[1500]);
    for (int i = 1; i < 101; i++) {
      queue.add(i, new int[5]);
    }
    return queue;
  }
}
