package org.meteora.generate;

import java.util.Arrays;
import java.util.SplittableRandom;
import org.meteora.UserException;

/**
 * Chooses one token from logits, with Hugging Face's order of warpers: temperature, top-k, top-p.
 * One for each sequence.
 *
 * <p>Probabilities are integers, relative to the likeliest token's: 2^−e with e in units of 2^−25,
 * which also is what tokens are ordered by, and then a mass in units of 2^−44. All roundings are
 * fixed, so that {@link org.meteora.cuda.kernel.DeviceSampler} draws the same token from the same
 * logits and the same random number.
 */
public final class Sampler {
  /** The exponent from which on a token has no mass: 44, in units of 2^−25. */
  private static final float NO_MASS = 44 << 25;

  private final GenerationConfig config;
  private final SplittableRandom random;

  /**
   * @param row index of the sequence: each draws from a stream of its own, whatever batch it is in
   */
  public Sampler(GenerationConfig config, long row) {
    this.config = config;
    // mixed twice: from neighbouring numbers it would draw one sequence, shifted
    long seed = new SplittableRandom(config.seed()).nextLong() + row;
    this.random = new SplittableRandom(new SplittableRandom(seed).nextLong());
  }

  /** The random number in [0, 1) of one more token, in units of 2^−64; 0 where none is needed. */
  public long uniform() {
    return config.sample() ? random.nextLong() : 0;
  }

  /**
   * @param logits of the whole vocabulary at {@code offset}; banned tokens are −∞
   * @param uniform one of {@link #uniform}
   */
  public int choose(float[] logits, int offset, int vocab, long uniform) {
    return config.sample() ? sample(logits, offset, vocab, uniform) : argMax(logits, offset, vocab);
  }

  /** Bans and chooses; {@code logits} are changed. */
  public int choose(float[] logits, int offset, int vocab, int[] banned, long uniform) {
    for (int token : banned) {
      logits[offset + token] = Float.NEGATIVE_INFINITY;
    }
    return choose(logits, offset, vocab, uniform);
  }

  /**
   * Bans and chooses; {@code logits} are changed.
   *
   * @return {@link DecodeSession#NOT_FINITE} when a logit is not finite: token 0 would be chosen
   *     for ever
   */
  int chooseFinite(float[] logits, int offset, int vocab, int[] banned, long uniform) {
    for (int i = offset; i < offset + vocab; i++) {
      if (!(Math.abs(logits[i]) <= Float.MAX_VALUE)) {
        return DecodeSession.NOT_FINITE;
      }
    }
    return choose(logits, offset, vocab, banned, uniform);
  }

  /** What ends an answer whose logits are not finite. */
  public static UserException notFinite() {
    return new UserException(
        "the logits are not finite (a value in the weights that is no number, or a dtype too small"
            + " for them); the answer is given up");
  }

  /**
   * The token with the largest of {@code vocab} logits from {@code offset} on; the first of equals.
   */
  public static int argMax(float[] logits, int offset, int vocab) {
    int best = 0;
    for (int i = 1; i < vocab; i++) {
      if (logits[offset + i] > logits[offset + best]) {
        best = i;
      }
    }
    return best;
  }

  /** What turns a difference of logits into an exponent. */
  public static float scale(double temperature) {
    return (float) (0x1p25 / Math.log(2) / temperature);
  }

  /** p in units of 2^−64, unsigned and at least one; 0 for 1. */
  public static long fixed(double topP) {
    if (topP >= 1) {
      return 0;
    }
    long units = (long) (topP * 0x1p63) << 1;
    return units == 0 ? 1 : units;
  }

  private int sample(float[] logits, int offset, int vocab, long uniform) {
    int likeliest = argMax(logits, offset, vocab);
    float largest = logits[offset + likeliest];
    float scale = scale(config.temperature());
    var order = new long[vocab]; // exponent, then token
    int count = 0;
    for (int i = 0; i < vocab; i++) {
      float exponent = (largest - logits[offset + i]) * scale;
      if (exponent < NO_MASS) {
        order[count++] = (long) (int) exponent << 32 | i;
      }
    }
    if (count == 0) {
      return likeliest;
    }
    int keep = count;
    if (config.topK() > 0 && config.topK() < count || config.topP() < 1) {
      Arrays.sort(order, 0, count);
      keep = kept(order, count);
      // and back into the order of the tokens
      for (int i = 0; i < keep; i++) {
        order[i] = Long.rotateLeft(order[i], 32);
      }
      Arrays.sort(order, 0, keep);
      for (int i = 0; i < keep; i++) {
        order[i] = Long.rotateLeft(order[i], 32);
      }
    }
    long sum = 0;
    for (int i = 0; i < keep; i++) {
      sum += mass(order[i]);
    }
    long point = Math.unsignedMultiplyHigh(uniform, sum);
    int at = 0;
    for (long upTo = mass(order[0]); upTo <= point; upTo += mass(order[at])) {
      at++;
    }
    return (int) order[at];
  }

  /** How many of the tokens, likeliest first, top-k and top-p keep. */
  private int kept(long[] order, int count) {
    int keep = count;
    if (config.topK() > 0 && config.topK() < count) {
      keep = config.topK();
      // ties with the last kept stay, as in Hugging Face
      while (keep < count && order[keep] >> 32 == order[keep - 1] >> 32) {
        keep++;
      }
    }
    if (config.topP() < 1) {
      long sum = 0;
      for (int i = 0; i < keep; i++) {
        sum += mass(order[i]);
      }
      long target = Math.max(1, Math.unsignedMultiplyHigh(fixed(config.topP()), sum));
      keep = 0;
      for (long upTo = 0; upTo < target; upTo += mass(order[keep++])) {}
    }
    return keep;
  }

  /** 2^−exponent in units of 2^−44, of an exponent in the upper half of {@code entry}. */
  private static long mass(long entry) {
    int exponent = (int) (entry >> 32);
    float t = (exponent & (1 << 25) - 1) * 0x1p-25f;
    float v = 0.000114919952f;
    v = v * t + -0.00129163684f;
    v = v * t + 0.00959703512f;
    v = v * t + -0.0554992296f;
    v = v * t + 0.24022609f;
    v = v * t + -0.693147182f;
    v = v * t + 1;
    return (long) (v * Math.scalb(1f, 44 - (exponent >> 25)));
  }
}
