package org.meteora.tensor;

import static java.lang.foreign.ValueLayout.JAVA_INT;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;

/**
 * Dropout whose choice is a function of a number's place, so that backward needs no mask kept, and
 * threads no order: number i is dropped when a hash of seed and i (MurmurHash3's finalizer twice,
 * with half of the seed added before each) is in the lowest share {@code p} of its values. What is
 * kept is not scaled by {@link #copy}: the adapters' scales take {@code 1 / (1 − p)} in.
 */
public final class CpuDropout {
  /** 0, 1, 2 …: a loop that adds it is turned into vector code, one that adds its index is not. */
  private static final int[] PLACES = new int[1024];

  static {
    for (int i = 0; i < PLACES.length; i++) {
      PLACES[i] = i;
    }
  }

  private static final int BITS = 24;

  private final double p;
  private final int dropped;
  private final int seed;
  private final int more;

  /**
   * @param p the share that is dropped; 0 for none
   * @param seed the same seed drops the same places
   */
  public CpuDropout(double p, long seed) {
    this.p = p;
    dropped = (int) Math.round(p * (1 << BITS));
    this.seed = (int) seed;
    more = (int) (seed >>> 32);
  }

  /** With the next seed of libtorch's generator; without drawing one when nothing is dropped. */
  public static CpuDropout next(NDManager manager, double p) {
    if (p == 0) {
      return new CpuDropout(0, 0);
    }
    try (var drawn = manager.randomInteger(0, Long.MAX_VALUE, Ops.shape(1), DataType.INT64)) {
      return new CpuDropout(p, drawn.toLongArray()[0]);
    }
  }

  /** What kept numbers must still be multiplied by. */
  public double scale() {
    return 1 / (1 - p);
  }

  /**
   * What to multiply a tensor of this shape by, 0 or {@code 1 / (1 − p)}, in float32. On one
   * thread; libtorch draws from a generator for each number, which took a tenth of a training step.
   */
  NDArray factors(NDManager manager, Shape shape) {
    var factors = Ops.empty(manager, Dtype.F32, shape.getShape());
    var memory = Ops.memory(factors);
    var row = new int[PLACES.length];
    int kept = Float.floatToRawIntBits((float) scale());
    for (long at = 0; at < shape.size(); at += row.length) {
      int count = (int) Math.min(row.length, shape.size() - at);
      Arrays.fill(row, kept);
      clear(row, 0, count, (int) at + seed);
      MemorySegment.copy(row, 0, memory, JAVA_INT, at * Float.BYTES, count);
    }
    return factors;
  }

  /**
   * Copies float32 numbers, zeros in place of the dropped ones.
   *
   * @param from from its byte {@code offset} on
   * @param to from its byte {@code target} on; may be the same memory
   * @param row scratch for {@code count} numbers
   * @param place of the first number
   */
  public void copy(
      MemorySegment from,
      long offset,
      MemorySegment to,
      long target,
      int[] row,
      int count,
      long place) {
    if (dropped == 0) {
      MemorySegment.copy(from, offset, to, target, (long) count * Float.BYTES);
      return;
    }
    MemorySegment.copy(from, JAVA_INT, offset, row, 0, count);
    for (int at = 0; at < count; at += PLACES.length) {
      clear(row, at, Math.min(PLACES.length, count - at), (int) place + at + seed);
    }
    MemorySegment.copy(row, 0, to, JAVA_INT, target, count);
  }

  /** On the numbers' bits: all of them zero is the number zero. */
  private void clear(int[] bits, int at, int count, int base) {
    var places = PLACES;
    for (int i = 0; i < count; i++) {
      int hash = base + places[i];
      hash = (hash ^ (hash >>> 16)) * 0x85ebca6b;
      hash = (hash ^ (hash >>> 13)) * 0xc2b2ae35;
      hash = (hash ^ (hash >>> 16)) + more;
      hash = (hash ^ (hash >>> 16)) * 0x85ebca6b;
      hash = (hash ^ (hash >>> 13)) * 0xc2b2ae35;
      hash ^= hash >>> 16;
      bits[at + i] &= (dropped - 1 - (hash >>> (Integer.SIZE - BITS))) >> 31;
    }
  }
}
