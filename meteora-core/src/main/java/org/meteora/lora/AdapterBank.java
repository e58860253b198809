package org.meteora.lora;

import ai.djl.ndarray.NDArray;
import java.util.Arrays;
import org.meteora.tensor.Ops;

/**
 * N adapters stacked for one linear layer.
 *
 * @param gate G {@code (N, in)}, or null where no gate chooses (a plain PEFT model)
 * @param loraA A {@code (Σr, in)}: the adapters' rows one after another
 * @param loraB B {@code (out, Σr)}
 * @param ranks r of each adapter; 0 where it does not target this layer
 * @param scales s of each adapter
 */
public record AdapterBank(
    NDArray gate, NDArray loraA, NDArray loraB, int[] ranks, double[] scales) {
  /**
   * This bank with B as a view of a row-major Bᵀ, in which a rank that was chosen is one row: what
   * the kernels for few tokens on a GPU read. The memory that B had is given back.
   */
  public AdapterBank withTransposedB() {
    try (var view = Ops.transpose(loraB, 0, 1);
        var rows = Ops.contiguous(view)) {
      var b = Ops.transpose(rows, 0, 1);
      loraB.close();
      return new AdapterBank(gate, loraA, b, ranks, scales);
    }
  }

  /** This bank with a gate {@code (N, in)}, or without one for null. */
  public AdapterBank withGate(NDArray other) {
    return new AdapterBank(other, loraA, loraB, ranks, scales);
  }

  /** N. */
  public int size() {
    return ranks.length;
  }

  /** Σr, the rows of A. */
  public int totalRank() {
    return Arrays.stream(ranks).sum();
  }

  /** The largest r; 0 without adapters. */
  public int maxRank() {
    return Arrays.stream(ranks).max().orElse(0);
  }

  /** Where adapter i's rows of A (columns of B) begin. */
  public int[] offsets() {
    var offsets = new int[ranks.length];
    for (int i = 1; i < ranks.length; i++) {
      offsets[i] = offsets[i - 1] + ranks[i - 1];
    }
    return offsets;
  }
}
