package org.meteora.backend.cpu;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;

import ai.djl.ndarray.NDArray;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Optional;
import java.util.Random;
import java.util.stream.IntStream;
import org.meteora.UserException;
import org.meteora.tensor.Blas;
import org.meteora.tensor.Blas.Matrix;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;
import org.meteora.tensor.Workers;

/**
 * {@code x Wᵀ} in float32, where what comes of a row does not depend on how many there are.
 *
 * <p>In which order the BLAS adds a row's products depends on the sizes of a product, and on the
 * processor. On those that were looked at it is the same from 16 rows on, whatever their number,
 * where there are some hundred outputs; with fewer it changes at some hundred rows, with more at
 * 64. So a product is of {@link #ROWS} rows at least, on one thread, and of a piece of the outputs;
 * with few outputs it is of always as many rows. That this is enough is seen, not promised: {@link
 * #here} looks, and makes all products of as many rows where it is not.
 */
final class RowProduct {
  /** Rows of a product at least, of which the last ones may be nobody's. */
  static final int ROWS = 16;

  /** Fewest outputs that {@link #here} looks at: a BLAS may have another routine for one. */
  static final int FEWEST_OUTPUTS = 2;

  /** Numbers of 16 bytes: a row that begins elsewhere may be summed from the next on. */
  private static final int ALIGNED = 4;

  /** Outputs of a product, where there are so many; the last has what remains as well. */
  private static final int OUTPUTS = 128;

  /** With fewer outputs there are {@link #ROWS} rows and no more. */
  private static final int MANY_OUTPUTS = 64;

  private final int mostRows;

  /**
   * @param mostRows of a product with many outputs, {@link #ROWS} or more
   */
  RowProduct(int mostRows) {
    this.mostRows = mostRows;
  }

  /** What was seen of this process's BLAS. */
  private static final class Seen {
    static final Optional<RowProduct> QUICKEST =
        IntStream.of(Integer.MAX_VALUE, ROWS)
            .mapToObj(RowProduct::new)
            .filter(RowProduct::isInvariant)
            .findFirst();
  }

  /**
   * The one that keeps the promise with this process's BLAS, which is looked at once, for half a
   * second.
   *
   * @throws UserException where there is none
   */
  static RowProduct here() {
    return Seen.QUICKEST.orElseThrow(
        () ->
            new UserException(
                "--batch-invariant cannot be had here: the BLAS of this libtorch adds a row's"
                    + " products in an order that depends on where the row stands"));
  }

  /**
   * @param x {@code (…, in)}
   * @param weight {@code (out, in)}
   * @param bias {@code (out)}, or null
   * @return {@code (…, out)}
   */
  NDArray linear(NDArray x, NDArray weight, NDArray bias) {
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
  void run(int rows, int out, int in, MemorySegment x, MemorySegment weight, MemorySegment y) {
    if (in % ALIGNED != 0) {
      throw new UserException(
          "--batch-invariant is for linears whose inputs are a multiple of %d, not %d",
          ALIGNED, in);
    }
    int whole = rows > ROWS && rowsAtOnce(out) > ROWS ? rows : rows / ROWS * ROWS;
    product(whole, out, in, x, weight, y);
    int rest = rows - whole;
    if (rest == 0) {
      return;
    }
    try (var arena = Arena.ofConfined()) {
      var more = forAll(arena.allocate((long) ROWS * in * Float.BYTES, 64));
      var result = forAll(arena.allocate((long) ROWS * out * Float.BYTES, 64));
      MemorySegment.copy(
          x, (long) whole * in * Float.BYTES, more, 0, (long) rest * in * Float.BYTES);
      product(ROWS, out, in, more, weight, result);
      MemorySegment.copy(
          result, 0, y, (long) whole * out * Float.BYTES, (long) rest * out * Float.BYTES);
    }
  }

  private int rowsAtOnce(int out) {
    return out < MANY_OUTPUTS ? ROWS : mostRows;
  }

  /** A multiple of {@link #ROWS} that is not less. */
  static int wholeRows(int rows) {
    return Math.ceilDiv(rows, ROWS) * ROWS;
  }

  /** The same memory for any thread, which does not use it longer than its owner has it. */
  private static MemorySegment forAll(MemorySegment confined) {
    return MemorySegment.ofAddress(confined.address()).reinterpret(confined.byteSize());
  }

  /** Of {@link #ROWS} rows or more. */
  private void product(
      int rows, int out, int in, MemorySegment x, MemorySegment weight, MemorySegment y) {
    int atOnce = rowsAtOnce(out);
    int pieces = Math.max(1, out / OUTPUTS);
    int shares = Math.min(pieces, Workers.count());
    Workers.run(
        shares,
        i -> {
          for (int piece = pieces * i / shares; piece < pieces * (i + 1) / shares; piece++) {
            int from = piece * OUTPUTS;
            int outputs = (piece + 1 == pieces ? out : from + OUTPUTS) - from;
            var own = new Matrix(part(weight, (long) from * in), in).transpose();
            for (long row = 0; row < rows; row += atOnce) {
              var inputs = new Matrix(part(x, row * in), in);
              var results = new Matrix(part(y, row * out + from), out);
              int some = (int) Math.min(atOnce, rows - row);
              Blas.product(some, outputs, in, inputs, own, 0, results);
            }
          }
        });
  }

  private static MemorySegment part(MemorySegment numbers, long first) {
    return numbers.asSlice(first * Float.BYTES);
  }

  /** Whether what comes of a row is the same: looked at for some numbers of rows and lengths. */
  private boolean isInvariant() {
    var random = new Random(1);
    int most = 1030;
    for (int in : new int[] {36, 576, 4096}) {
      try (var arena = Arena.ofShared()) {
        var x = numbers(arena, random, most * in);
        for (int out :
            new int[] {FEWEST_OUTPUTS, 8, 80, 300}) { // few: of gates, and of adapters' ranks
          var weight = numbers(arena, random, out * in);
          var all = arena.allocate((long) most * out * Float.BYTES, 64);
          run(most, out, in, x, weight, all);
          for (int rows : new int[] {1, 2, 3, 4, 5, 7, 16, 31, 97, 130, 513}) {
            var some = arena.allocate((long) rows * out * Float.BYTES, 64);
            int first = most - rows; // nor does a row's place count
            run(rows, out, in, part(x, (long) first * in), weight, some);
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
