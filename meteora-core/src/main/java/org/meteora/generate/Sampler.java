package org.meteora.generate;

import java.util.Arrays;
import java.util.SplittableRandom;

/**
 * Chooses one token from logits, with Hugging Face's order of warpers: temperature, top-k, top-p.
 * One for each sequence.
 */
final class Sampler {
  private final GenerationConfig config;
  private final SplittableRandom random;

  /**
   * @param row index of the sequence: each draws from a stream of its own, whatever batch it is in
   */
  Sampler(GenerationConfig config, long row) {
    this.config = config;
    this.random = new SplittableRandom(config.seed() * 0x9E3779B97F4A7C15L + row);
  }

  /**
   * @param logits of the whole vocabulary at {@code offset}; banned tokens are −∞
   */
  int choose(float[] logits, int offset, int vocab) {
    return config.sample() ? sample(logits, offset, vocab) : argMax(logits, offset, vocab);
  }

  static int argMax(float[] logits, int offset, int vocab) {
    int best = 0;
    for (int i = 1; i < vocab; i++) {
      if (logits[offset + i] > logits[offset + best]) {
        best = i;
      }
    }
    return best;
  }

  private int sample(float[] logits, int offset, int vocab) {
    double max = logits[offset + argMax(logits, offset, vocab)];
    int keep = config.topK() > 0 ? Math.min(config.topK(), vocab) : vocab;
    var order = new Integer[vocab];
    Arrays.setAll(order, i -> i);
    Arrays.sort(order, (a, b) -> Float.compare(logits[offset + b], logits[offset + a]));
    // ties with the last kept stay, as in Hugging Face
    while (keep < vocab && logits[offset + order[keep]] == logits[offset + order[keep - 1]]) {
      keep++;
    }
    var weight = new double[keep];
    double sum = 0;
    for (int i = 0; i < keep; i++) {
      weight[i] = Math.exp((logits[offset + order[i]] - max) / config.temperature());
      sum += weight[i];
    }
    if (config.topP() < 1) {
      double mass = 0;
      int most = 0;
      while (most < keep && (most == 0 || mass < config.topP() * sum)) {
        mass += weight[most++];
      }
      keep = most;
      sum = mass;
    }
    double point = random.nextDouble() * sum;
    for (int i = 0; i < keep; i++) {
      point -= weight[i];
      if (point < 0) {
        return order[i];
      }
    }
    return order[keep - 1];
  }
}
