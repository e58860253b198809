package org.meteora.cuda.kernel;

import java.util.Arrays;
import org.meteora.UserException;

/**
 * The adapters of one linear as device addresses (paper, section 3.1).
 *
 * @param gate (N, in); 0 for none, where the norms of z choose
 * @param a (Σr, in), the adapters' rows one after another
 * @param b Bᵀ (Σr, out), so that a chosen rank is one contiguous row
 * @param ranks N ranks, 0…64; 0 where an adapter does not target this linear
 */
public record AdapterMemory(long gate, long a, long b, int[] ranks, float[] scales) {
  /** The largest rank that the kernels take. */
  public static final int MAX_RANK = 64;

  public int count() {
    return ranks.length;
  }

  /** Rows of the gate. */
  public int gateRows() {
    return gate == 0 ? 0 : count();
  }

  public int sumOfRanks() {
    var sum = 0;
    for (var rank : ranks) {
      sum += rank;
    }
    return sum;
  }

  /** Whether A and B are where 16 bytes can be read at once. */
  boolean isAligned() {
    return (a | b) % 16 == 0;
  }

  public int maxRank() {
    return Arrays.stream(ranks).max().orElse(0);
  }

  /** N + 1 offsets of the adapters' rows in {@code a}. */
  public int[] offsets() {
    var offsets = new int[ranks.length + 1];
    for (var i = 0; i < ranks.length; i++) {
      offsets[i + 1] = offsets[i] + ranks[i];
    }
    return offsets;
  }

  /**
   * @throws UserException when the kernels cannot choose {@code topK} of these adapters, or do not
   *     know their ranks
   */
  public void check(int topK) {
    if (topK < 1 || topK > count()) {
      throw new UserException("cannot choose %s of %s adapters (--routing-top-k)", topK, count());
    }
    for (var rank : ranks) {
      if (rank < 0 || rank > MAX_RANK) {
        throw new UserException("the fused CUDA path takes ranks up to %s, not %s", MAX_RANK, rank);
      }
    }
  }
}
