package org.meteora.train.batch;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Random;
import java.util.stream.LongStream;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.constraints.IntRange;
import org.junit.jupiter.api.Test;

class BatchesTest {
  /** Tasks as unlike as the real ones: short answers, long articles. */
  private static List<TrainingSample> mixed(int count, long seed) {
    var random = new Random(seed);
    var samples = new ArrayList<TrainingSample>();
    for (int i = 0; i < count; i++) {
      int task = random.nextInt(5);
      double typical = new double[] {30, 80, 200, 600, 1500}[task];
      int length = (int) Math.clamp(typical * Math.exp(0.5 * random.nextGaussian()), 2, 4096);
      var tokens = random.ints(length, 0, 1000).toArray();
      samples.add(new TrainingSample("t" + task + ":" + i, tokens, length / 2, task));
    }
    return samples;
  }

  @Property(tries = 50)
  void everySampleOccursOnceAnEpoch(
      @ForAll @IntRange(min = 1, max = 700) int count,
      @ForAll @IntRange(min = 1, max = 7) int batchSize,
      @ForAll long seed) {
    var samples = mixed(count, seed);
    var batches = new Batches(samples, batchSize, false, seed);
    for (int epoch = 0; epoch < 2; epoch++) {
      var seen = new ArrayList<String>();
      for (long i = 0; i < batches.perEpoch(); i++) {
        var batch = batches.get(epoch * batches.perEpoch() + i);
        assertThat(batch.rows()).isBetween(1, batchSize);
        batch.samples().forEach(sample -> seen.add(sample.id()));
      }
      assertThat(seen).hasSize(count);
      assertThat(new HashSet<>(seen)).hasSize(count);
    }
  }

  /** What a step must have memory for: not as many as the longest sample in each row. */
  @Test
  void theMostTokensAreThoseOfABatchThatIsMade() {
    var samples = new ArrayList<TrainingSample>();
    for (int length : new int[] {10, 20, 30, 40, 4000}) {
      samples.add(new TrainingSample("s" + length, new int[length], length / 2, 0));
    }
    assertThat(new Batches(samples, 4, false, 1).mostTokens(100)).isEqualTo(4000);
    var mixed = new Batches(mixed(50, 1), 4, false, 1);
    assertThat(mixed.mostTokens(1)).isEqualTo(mixed.get(0).tokens());
    assertThat(mixed.mostTokens(0)).isZero();
  }

  @Test
  void aPositionGivesTheSameBatchWhoeverAsks() {
    var samples = mixed(500, 1);
    var forward = new Batches(samples, 4, false, 7);
    var resumed = new Batches(samples, 4, false, 7);
    for (long position : new long[] {300, 3, 124, 125, 126, 0, 1000}) {
      assertThat(resumed.get(position)).isEqualTo(forward.get(position));
    }
    var other = new Batches(samples, 4, false, 8);
    assertThat(LongStream.range(0, 20).mapToObj(other::get).toList())
        .isNotEqualTo(LongStream.range(0, 20).mapToObj(forward::get).toList());
  }

  @Test
  void littlePaddingOnMixedTasks() {
    assertThat(padding(new Batches(mixed(3000, 2), 4, false, 42))).isLessThan(0.15);
    assertThat(padding(new Batches(mixed(1000, 3), 8, false, 42))).isLessThan(0.15);
  }

  /** The share of an epoch's positions that are padding. */
  private static double padding(Batches batches) {
    double positions = 0;
    double tokens = 0;
    for (long i = 0; i < batches.perEpoch(); i++) {
      positions += batches.get(i).rows() * batches.get(i).length();
      tokens += batches.get(i).tokens();
    }
    return 1 - tokens / positions;
  }

  @Test
  void batchesLargerThanTheData() {
    var samples = mixed(5, 1);
    for (int size : new int[] {5, 1 << 25, Integer.MAX_VALUE}) {
      var batches = new Batches(samples, size, false, 42);
      assertThat(batches.perEpoch()).isEqualTo(1);
      assertThat(batches.get(3).samples()).containsExactlyInAnyOrderElementsOf(samples);
    }
  }

  @Test
  void labelsAreTheNextTokens() {
    var a = new TrainingSample("a", new int[] {5, 6, 7, 8}, 2, 1);
    var b = new TrainingSample("b", new int[] {9, 4}, 1, 3);
    var whole = new Batch(List.of(a, b), false);
    assertThat(whole.ids()).containsExactly(5, 6, 7, 8, 9, 4, 0, 0);
    assertThat(whole.labels()).containsExactly(6, 7, 8, -100, 4, -100, -100, -100);
    assertThat(whole.gateLabels()).containsExactly(1, 1, 1, -100, 3, -100, -100, -100);
    assertThat(whole.labelCount()).isEqualTo(4);
    assertThat(whole.gateLabelCount()).isEqualTo(4);
    var response = new Batch(List.of(a, b), true);
    assertThat(response.labels()).containsExactly(-100, 7, 8, -100, 4, -100, -100, -100);
    assertThat(response.labelCount())
        .isEqualTo(Arrays.stream(response.labels()).filter(l -> l != Batch.IGNORED).count());
    // whichever labels the answers' loss counts, gates choose on every token of a prompt too
    assertThat(response.gateLabels()).containsExactly(whole.gateLabels());
    assertThat(response.gateLabelCount()).isEqualTo(whole.gateLabelCount());
  }

  @Test
  void otherDataHaveAnotherFingerprint() {
    var samples = mixed(100, 1);
    var changed = new ArrayList<>(samples);
    var tokens = samples.get(50).tokens().clone();
    tokens[0]++;
    changed.set(
        50,
        new TrainingSample("x", tokens, samples.get(50).promptTokens(), samples.get(50).task()));
    assertThat(Batches.fingerprint(changed)).isNotEqualTo(Batches.fingerprint(samples));
    assertThat(Batches.fingerprint(mixed(100, 1))).isEqualTo(Batches.fingerprint(samples));
  }
}
