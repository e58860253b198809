package org.meteora.generate;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.Random;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;

/** Against the probabilities that Hugging Face's warpers leave, in float64. */
class SamplerTest {
  static final GenerationConfig GREEDY = GenerationConfig.greedy(List.of(), 100);

  /** softmax(logits / temperature) over what top-k and then top-p keep; 0 elsewhere. */
  static double[] expected(float[] logits, double temperature, double topP, int topK) {
    var order =
        IntStream.range(0, logits.length)
            .boxed()
            .sorted(Comparator.comparing(i -> -logits[i]))
            .toList();
    var p = new double[logits.length];
    double kth = topK > 0 ? logits[order.get(Math.min(topK, logits.length) - 1)] : -1e30;
    double sum = 0;
    for (int i = 0; i < p.length; i++) {
      p[i] = logits[i] < kth ? 0 : Math.exp((logits[i] - logits[order.getFirst()]) / temperature);
      sum += p[i];
    }
    double before = 0;
    double kept = 0;
    for (int i : order) {
      double own = p[i] / sum;
      p[i] = before < topP ? own : 0;
      kept += p[i];
      before += own;
    }
    for (int i = 0; i < p.length; i++) {
      p[i] /= kept;
    }
    return p;
  }

  /** Twice the logarithm of the likelihood's ratio, by its deviations: small when p is right. */
  static double deviations(int[] counts, double[] p, int draws) {
    double chi = 0;
    int cells = 0;
    for (int i = 0; i < p.length; i++) {
      if (p[i] == 0) {
        assertThat(counts[i]).as("draws of token %d, which is not kept", i).isZero();
      } else if (p[i] * draws >= 10) {
        chi += Math.pow(counts[i] - p[i] * draws, 2) / (p[i] * draws);
        cells++;
      }
    }
    return (chi - cells) / Math.sqrt(2.0 * Math.max(1, cells));
  }

  @Test
  void drawsFollowTheKeptDistribution() {
    var random = new Random(1);
    for (double temperature : new double[] {0.1, 0.6, 1, 2}) {
      for (double topP : new double[] {1e-9, 0.3, 0.9, 1}) {
        for (int topK : new int[] {0, 1, 7, 300}) {
          var logits = new float[200];
          for (int i = 0; i < logits.length; i++) {
            logits[i] = (float) (2 * random.nextGaussian());
          }
          logits[20] = Float.NEGATIVE_INFINITY;
          var sampler = new Sampler(GREEDY.withSampling(temperature, topP, topK, 5), 0);
          var counts = new int[logits.length];
          int draws = 20000;
          for (int i = 0; i < draws; i++) {
            counts[sampler.choose(logits, 0, logits.length, sampler.uniform())]++;
          }
          assertThat(deviations(counts, expected(logits, temperature, topP, topK), draws))
              .as("T %s, p %s, k %d", temperature, topP, topK)
              .isLessThan(5);
        }
      }
    }
  }

  @Test
  void smallestAndLargestNumbersReachTheEnds() {
    var random = new Random(2);
    for (int round = 0; round < 200; round++) {
      var logits = new float[1 + random.nextInt(60)];
      for (int i = 0; i < logits.length; i++) {
        logits[i] = random.nextInt(5);
      }
      var p = expected(logits, 1.5, 1, 4);
      var kept = IntStream.range(0, p.length).filter(i -> p[i] > 0).toArray();
      var sampler = new Sampler(GREEDY.withSampling(1.5, 1, 4, 0), 0);
      assertThat(sampler.choose(logits, 0, logits.length, 0)).isEqualTo(kept[0]);
      assertThat(sampler.choose(logits, 0, logits.length, -1)).isEqualTo(kept[kept.length - 1]);
    }
  }

  @Test
  void equalsShareWhatTopPLeavesInTheOrderOfTokens() {
    var logits = new float[] {0, 1, 1, 0, 1, 1};
    // each 1 has e / (4 e + 2) = 0.21: half the mass takes three of them
    var sampler = new Sampler(GREEDY.withSampling(1, 0.5, 0, 3), 0);
    var seen = new boolean[6];
    for (int i = 0; i < 500; i++) {
      seen[sampler.choose(logits, 0, 6, sampler.uniform())] = true;
    }
    assertThat(seen).containsExactly(false, true, true, false, true, false);
  }

  @Test
  void nothingLeftOrEverythingEqual() {
    var none = new float[8];
    Arrays.fill(none, Float.NEGATIVE_INFINITY);
    var sampler = new Sampler(GREEDY.withSampling(0.7, 0.9, 3, 3), 0);
    assertThat(sampler.choose(none, 0, 8, sampler.uniform())).isZero();
    assertThat(new Sampler(GREEDY, 0).choose(new float[] {9, 1, 3, 3, 2}, 1, 4, 0)).isEqualTo(1);
    var counts = new int[64];
    for (int i = 0; i < 6400; i++) {
      counts[sampler.choose(new float[64], 0, 64, sampler.uniform())]++;
    }
    // all tie with the third; nine tenths of 64 are 58
    assertThat(Arrays.stream(counts).filter(c -> c > 0).count()).isEqualTo(58);
  }

  @Test
  void aSeedGivesTheSameDraws() {
    var logits = new float[50];
    var config = GREEDY.withSampling(1, 1, 0, 9);
    var a = new Sampler(config, 3);
    var b = new Sampler(config, 3);
    var other = new Sampler(config, 4);
    int same = 0;
    for (int i = 0; i < 100; i++) {
      int token = a.choose(logits, 0, 50, a.uniform());
      assertThat(b.choose(logits, 0, 50, b.uniform())).isEqualTo(token);
      same += other.choose(logits, 0, 50, other.uniform()) == token ? 1 : 0;
    }
    assertThat(same).isLessThan(20);
  }

  @Test
  void neighbouringSeedsAndRowsDrawDifferently() {
    var drawn = new java.util.HashSet<Long>();
    for (long seed = 0; seed < 20; seed++) {
      for (int row = 0; row < 5; row++) {
        var sampler = new Sampler(GREEDY.withSampling(1, 1, 0, seed), row);
        for (int token = 0; token < 50; token++) {
          drawn.add(sampler.uniform());
        }
      }
    }
    assertThat(drawn).hasSize(20 * 5 * 50);
  }
}
