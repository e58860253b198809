package org.meteora.data.source;

import java.util.function.IntUnaryOperator;
import java.util.stream.IntStream;

/**
 * The generator MT19937 (Matsumoto and Nishimura 1998) as Python and numpy seed it and draw from
 * it: what the order of BIG-bench's published records and choices comes from.
 */
final class MersenneTwister {
  private static final int N = 624;
  private static final int M = 397;
  private static final int SEED = 42;

  private final int[] state = new int[N];
  private int next = N;

  private MersenneTwister() {}

  /** Seeded with one word, as {@code numpy.random.RandomState(seed)} is. */
  static MersenneTwister ofWord(int seed) {
    var twister = new MersenneTwister();
    var s = twister.state;
    s[0] = seed;
    for (int k = 1; k < N; k++) {
      s[k] = 1812433253 * (s[k - 1] ^ s[k - 1] >>> 30) + k;
    }
    return twister;
  }

  /** Seeded with an array of one word, as {@code random.seed(word)} of Python is. */
  static MersenneTwister ofArray(int word) {
    var twister = ofWord(19650218);
    var s = twister.state;
    int i = 1;
    for (int k = 0; k < N; k++) {
      s[i] = (s[i] ^ (s[i - 1] ^ s[i - 1] >>> 30) * 1664525) + word;
      i = following(s, i);
    }
    for (int k = 1; k < N; k++) {
      s[i] = (s[i] ^ (s[i - 1] ^ s[i - 1] >>> 30) * 1566083941) - i;
      i = following(s, i);
    }
    s[0] = 0x80000000;
    return twister;
  }

  private static int following(int[] s, int i) {
    if (i + 1 < N) {
      return i + 1;
    }
    s[0] = s[N - 1];
    return 1;
  }

  /** The next 32 bits. */
  int word() {
    if (next == N) {
      for (int k = 0; k < N; k++) {
        int y = state[k] & 0x80000000 | state[(k + 1) % N] & 0x7fffffff;
        state[k] = state[(k + M) % N] ^ y >>> 1 ^ ((y & 1) == 0 ? 0 : 0x9908b0df);
      }
      next = 0;
    }
    int y = state[next++];
    y ^= y >>> 11;
    y ^= y << 7 & 0x9d2c5680;
    y ^= y << 15 & 0xefc60000;
    return y ^ y >>> 18;
  }

  /** {@code numpy.random.RandomState(42).permutation(n)}: the order of an example's n choices. */
  static int[] choices(int n) {
    var twister = ofWord(SEED);
    return shuffled(n, i -> twister.word() & -1 >>> Integer.numberOfLeadingZeros(i));
  }

  /** {@code random.seed(42)}, then {@code random.shuffle} of 0…n−1: the order of n examples. */
  static int[] examples(int n) {
    var twister = ofArray(SEED);
    return shuffled(n, i -> twister.word() >>> Integer.numberOfLeadingZeros(i + 1));
  }

  /**
   * Fisher and Yates' shuffle.
   *
   * @param draw a number of as many bits as its argument, at least
   */
  private static int[] shuffled(int n, IntUnaryOperator draw) {
    var order = IntStream.range(0, n).toArray();
    for (int i = n - 1; i > 0; i--) {
      int j;
      do {
        j = draw.applyAsInt(i);
      } while (j > i);
      int kept = order[i];
      order[i] = order[j];
      order[j] = kept;
    }
    return order;
  }
}
