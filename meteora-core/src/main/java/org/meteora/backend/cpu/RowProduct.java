package org.meteora.backend.cpu;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;

import ai.djl.ndarray.NDArray;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Random;
import org.meteora.UserException;
import org.meteora.tensor.Blas;
import org.meteora.tensor.Blas.Matrix;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;
import org.meteora.tensor.Workers;

/**
 * {@code x Wᵀ} in float32, where what comes of a row does not depend on how many there are. The
 * BLAS adds a row's products in one order whatever the number of rows, from {@link #FEWEST} on and
 * on one thread: threads share the outputs, not the rows. That is seen, not promised: {@link
 * #isInvariant} looks.
 */
final class RowProduct {
  /** Rows at least: fewer are summed otherwise. */
  static final int FEWEST = 4;

  /** Numbers of 16 bytes: a row that begins elsewhere may be summed from the next on. */
  private static final int ALIGNED = 4;

  /** Outputs of a thread are a multiple of so many. */
  private static final int OUTPUTS = 64;

  private RowProduct() {}

  /**
   * @param x {@code (…, in)}
   * @param weight {@code (out, in)}
   * @param bias {@code (out)}, or null
   * @return {@code (…, out)}
   */
  static NDArray linear(NDArray x, NDArray weight, NDArray bias) {
    int in = (int) weight.getShape().get(1);
    int out = (int) weight.getShape().get(0);
    int rows = (int) (x.getShape().size() / in);
    var shape = x.getShape().getShape().clone();
    shape[shape.length - 1] = out;
    var y = Ops.empty(x.getManager(), Dtype.F32, shape);
    try (var rowMajor = Ops.contiguous(x);
        var w = Ops.contiguous(weight)) {
      run(rows, out, in, Ops.memory(rowMajor), Ops.memory(w), Ops.memory(y));
    }
    return bias == null ? y : y.addi(bias);
  }

  /**
   * @param x {@code (rows, in)}
   * @param weight {@code (out, in)}
   * @param y {@code (rows, out)}, written
   * @throws UserException where rows do not all begin at a multiple of 16 bytes
   */
  static void run(
      int rows, int out, int in, MemorySegment x, MemorySegment weight, MemorySegment y) {
    if (in % ALIGNED != 0) {
      throw new UserException(
          "--batch-invariant is for linears whose inputs are a multiple of %d, not %d",
          ALIGNED, in);
    }
    if (rows >= FEWEST) {
      product(rows, out, in, x, weight, y);
      return;
    }
    try (var arena = Arena.ofConfined()) {
      var more = forAll(arena.allocate((long) FEWEST * in * Float.BYTES, 64));
      var result = forAll(arena.allocate((long) FEWEST * out * Float.BYTES, 64));
      MemorySegment.copy(x, 0, more, 0, (long) rows * in * Float.BYTES);
      product(FEWEST, out, in, more, weight, result);
      MemorySegment.copy(result, 0, y, 0, (long) rows * out * Float.BYTES);
    }
  }

  /** The same memory for any thread, which does not use it longer than its owner has it. */
  private static MemorySegment forAll(MemorySegment confined) {
    return MemorySegment.ofAddress(confined.address()).reinterpret(confined.byteSize());
  }

  private static void product(
      int rows, int out, int in, MemorySegment x, MemorySegment weight, MemorySegment y) {
    int shares = Math.clamp(out / OUTPUTS, 1, Workers.count());
    Workers.run(
        shares,
        i -> {
          int from = out / OUTPUTS * i / shares * OUTPUTS;
          int to = i + 1 == shares ? out : out / OUTPUTS * (i + 1) / shares * OUTPUTS;
          var own = new Matrix(weight.asSlice((long) from * in * Float.BYTES), in);
          var results = new Matrix(y.asSlice((long) from * Float.BYTES), out);
          Blas.product(rows, to - from, in, new Matrix(x, in), own.transpose(), 0, results);
        });
  }

  /** Whether the BLAS does as is said above: looked at for some numbers of rows and lengths. */
  static boolean isInvariant() {
    var random = new Random(1);
    int most = 1030;
    for (int in : new int[] {36, 576, 4096}) {
      try (var arena = Arena.ofShared()) {
        var x = numbers(arena, random, most * in);
        for (int out : new int[] {2, 8, 80}) { // few: of gates, and of adapters' ranks
          var weight = numbers(arena, random, out * in);
          var all = arena.allocate((long) most * out * Float.BYTES, 64);
          run(most, out, in, x, weight, all);
          for (int rows : new int[] {1, 2, 3, 4, 5, 7, 16, 31, 97, 130, 513}) {
            var some = arena.allocate((long) rows * out * Float.BYTES, 64);
            int first = most - rows; // nor does a row's place count
            run(rows, out, in, x.asSlice((long) first * in * Float.BYTES), weight, some);
            if (some.mismatch(all.asSlice((long) first * out * Float.BYTES)) >= 0) {
              return false;
            }
          }
        }
      }
    }
    return true;
  }

  private static MemorySegment numbers(Arena arena, Random random, int count) {
    var numbers = arena.allocate((long) count * Float.BYTES, 64);
    for (int i = 0; i < count; i++) {
      numbers.setAtIndex(JAVA_FLOAT, i, random.nextFloat() - 0.5f);
    }
    return numbers;
  }
}
