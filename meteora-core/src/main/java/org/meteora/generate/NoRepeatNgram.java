package org.meteora.generate;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Which tokens would repeat an n-gram of one sequence. Kept as the sequence grows, so that a step
 * costs the same however long it is.
 */
final class NoRepeatNgram {
  private final int size;
  private final int[] last;
  private final Map<List<Integer>, List<Integer>> followers = new HashMap<>();
  private int seen;

  /**
   * @param size n, at least 1
   */
  NoRepeatNgram(int size) {
    this.size = size;
    this.last = new int[size - 1];
  }

  void add(int token) {
    if (seen >= size - 1) {
      followers.computeIfAbsent(prefix(), key -> new ArrayList<>()).add(token);
    }
    if (size > 1) {
      System.arraycopy(last, 1, last, 0, size - 2);
      last[size - 2] = token;
    }
    seen++;
  }

  private List<Integer> prefix() {
    var key = new ArrayList<Integer>(size - 1);
    for (int token : last) {
      key.add(token);
    }
    return key;
  }

  /** Tokens that may not come next. */
  int[] banned() {
    if (seen < size - 1) {
      return new int[0];
    }
    return followers.getOrDefault(prefix(), List.of()).stream()
        .mapToInt(Integer::intValue)
        .distinct()
        .toArray();
  }
}
