package org.meteora.backend.cpu;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.lang.foreign.MemorySegment;
import org.meteora.tensor.Blas;
import org.meteora.tensor.CpuDropout;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;
import org.meteora.tensor.Workers;

/**
 * What gated layers with one input share in a training pass: q, k and v, gate and up. Dropout draws
 * once for all of them, so that {@code x̃}, what it keeps, is made once, and {@code ∂x̃} is summed
 * over them before it goes through.
 */
final class CpuInput {
  /** Rows that stay in the second-level cache between two things that are done to them. */
  private static final int AT_ONCE = 16;

  private final NDManager parent;
  private final NDArray array;
  private final double p;
  private final CpuDropout dropout;
  private NDManager scope;
  private MemorySegment kept;
  private MemorySegment gradient;

  /**
   * @param parent gives the device
   * @param array x {@code (…, in)} as the layers get it
   * @param p the share that is dropped
   */
  CpuInput(NDManager parent, NDArray array, double p) {
    this.parent = parent;
    this.array = array;
    this.p = p;
    dropout = CpuDropout.next(parent, p);
  }

  boolean isOf(NDArray other, double share) {
    return array == other && p == share;
  }

  /** What kept numbers must still be multiplied by. */
  double scale() {
    return dropout.scale();
  }

  private MemorySegment room(int tokens, int in, boolean zeros) {
    if (scope == null) {
      scope = parent.newSubManager();
    }
    return Ops.memory(
        zeros ? Ops.zeros(scope, Dtype.F32, tokens, in) : Ops.empty(scope, Dtype.F32, tokens, in));
  }

  /**
   * x̃ {@code (tokens, in)}.
   *
   * @param x the same, row-major
   */
  MemorySegment kept(MemorySegment x, int tokens, int in) {
    if (!dropout.drops()) {
      return x;
    }
    if (kept == null) {
      kept = room(tokens, in, false);
      Workers.share(
          tokens, (from, to) -> dropout.copy(x, kept, (long) from * in, (long) (to - from) * in));
    }
    return kept;
  }

  /** Where ∂x̃ is added up: gx itself where nothing is dropped. */
  MemorySegment gradient(MemorySegment gx, int tokens, int in) {
    if (gx == null || !dropout.drops()) {
      return gx;
    }
    if (gradient == null) {
      gradient = room(tokens, in, true);
    }
    return gradient;
  }

  /** Adds to gx {@code (tokens, in)} what of ∂x̃ was not dropped; once all layers have added. */
  void addTo(MemorySegment gx, int tokens, int in) {
    if (gradient != null) {
      Workers.share(
          tokens,
          (from, to) -> {
            for (int row = from; row < to; row += AT_ONCE) {
              long place = (long) row * in;
              int count = Math.min(AT_ONCE, to - row) * in;
              dropout.copy(gradient, gradient, place, count);
              Blas.add(count, 1, CpuTraining.at(gradient, place), CpuTraining.at(gx, place));
            }
          });
    }
  }

  /** Gives memory back; x̃ can be asked for again. */
  void release() {
    kept = null;
    gradient = null;
    if (scope != null) {
      scope.close();
      scope = null;
    }
  }
}
