package org.meteora.generate;

import java.util.Arrays;
import java.util.stream.IntStream;

/**
 * Which tokens would repeat an n-gram of one sequence. Kept as the sequence grows, so that a step
 * costs the same however long it is: places are chained by a hash of the n − 1 tokens before them,
 * 16 to 32 bytes a token.
 */
final class NoRepeatNgram {
  private static final long MULTIPLIER = 0x9E3779B97F4A7C15L;

  private final int size;
  private final long leaving; // MULTIPLIER to the power of n − 1
  private long hash; // of the last n − 1 tokens
  private int[] tokens = new int[64];
  private int[] hashes = new int[64]; // of the n − 1 tokens before each
  private int[] before = new int[64]; // the place before with the same end of its hash, plus 1
  private int[] newest = new int[64]; // the newest place by the end of its hash, plus 1
  private int seen;

  /**
   * @param size n; 0: none is kept from repeating
   */
  NoRepeatNgram(int size) {
    this.size = size;
    long power = 1;
    for (int i = 1; i < size; i++) {
      power *= MULTIPLIER;
    }
    this.leaving = power;
  }

  void add(int token) {
    if (size == 0) {
      return;
    }
    if (seen == tokens.length) {
      grow();
    }
    tokens[seen] = token;
    hashes[seen] = folded();
    if (seen >= size - 1) {
      chain(seen);
    }
    if (size > 1) {
      int gone = seen < size - 1 ? 0 : tokens[seen - size + 1] + 1;
      hash = hash * MULTIPLIER + token + 1 - leaving * gone;
    }
    seen++;
  }

  private void chain(int place) {
    int end = hashes[place] & newest.length - 1;
    before[place] = newest[end];
    newest[end] = place + 1;
  }

  private void grow() {
    tokens = Arrays.copyOf(tokens, 2 * seen);
    hashes = Arrays.copyOf(hashes, 2 * seen);
    before = Arrays.copyOf(before, 2 * seen);
    newest = new int[2 * seen];
    for (int place = size - 1; place < seen; place++) {
      chain(place);
    }
  }

  private int folded() {
    return (int) (hash >>> 32);
  }

  /** Tokens that may not come next. */
  int[] banned() {
    if (size == 0 || seen < size - 1) {
      return new int[0];
    }
    var banned = IntStream.builder();
    int wanted = folded();
    int from = seen - size + 1;
    for (int next = newest[wanted & newest.length - 1]; next > 0; next = before[next - 1]) {
      int place = next - 1;
      if (hashes[place] == wanted
          && Arrays.equals(tokens, place - size + 1, place, tokens, from, seen)) {
        banned.add(tokens[place]);
      }
    }
    return banned.build().distinct().toArray();
  }
}
