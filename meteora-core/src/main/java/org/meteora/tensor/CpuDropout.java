package org.meteora.tensor;

import static java.lang.foreign.ValueLayout.JAVA_INT;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import java.lang.foreign.MemorySegment;
import java.util.stream.IntStream;

/**
 * Dropout whose choice is a function of a number's place, so that backward needs no mask kept, and
 * threads no order: number i is dropped when a hash of seed and i (MurmurHash3's finalizer twice,
 * with half of the seed added before each) is in the lowest share {@code p} of its values. What is
 * kept is not scaled by {@link #copy}: the adapters' scales take {@code 1 / (1 − p)} in.
 */
public final class CpuDropout {
  /** Numbers at once: their bits and hashes stay in the first-level cache. */
  private static final int BLOCK = 1024;

  /** 0, 1, 2 …: a loop that adds it is turned into vector code, one that adds its index is not. */
  private static final int[] PLACES = IntStream.range(0, BLOCK).toArray();

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

  /** Whether anything is dropped at all. */
  public boolean drops() {
    return dropped > 0;
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
    var factors = manager.full(shape, (float) scale(), DataType.FLOAT32);
    var memory = Ops.memory(factors);
    copy(memory, memory, 0, shape.size());
    return factors;
  }

  /**
   * Copies float32 numbers, zeros in place of the dropped ones.
   *
   * @param from its number {@code place} and those behind it
   * @param to to the same places; may be the same memory
   */
  public void copy(MemorySegment from, MemorySegment to, long place, long count) {
    var bits = new int[BLOCK];
    var hashes = new int[BLOCK];
    for (long at = place; at < place + count; at += BLOCK) {
      int some = (int) Math.min(BLOCK, place + count - at);
      MemorySegment.copy(from, JAVA_INT, at * Float.BYTES, bits, 0, some);
      clear(bits, hashes, some, at);
      MemorySegment.copy(bits, 0, to, JAVA_INT, at * Float.BYTES, some);
    }
  }

  /**
   * On the numbers' bits: all of them zero is the number zero. In two loops, since the compiler
   * makes no vector code of one that is as long as both.
   */
  private void clear(int[] bits, int[] hashes, int count, long place) {
    var places = PLACES;
    int base = (int) place + seed;
    for (int i = 0; i < count; i++) {
      int hash = base + places[i];
      hash = (hash ^ (hash >>> 16)) * 0x85ebca6b;
      hash = (hash ^ (hash >>> 13)) * 0xc2b2ae35;
      hashes[i] = (hash ^ (hash >>> 16)) + more;
    }
    for (int i = 0; i < count; i++) {
      int hash = hashes[i];
      hash = (hash ^ (hash >>> 16)) * 0x85ebca6b;
      hash = (hash ^ (hash >>> 13)) * 0xc2b2ae35;
      hash ^= hash >>> 16;
      bits[i] &= (dropped - 1 - (hash >>> (Integer.SIZE - BITS))) >> 31;
    }
  }
}
