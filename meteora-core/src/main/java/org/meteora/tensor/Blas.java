package org.meteora.tensor;

import static java.lang.foreign.ValueLayout.JAVA_BYTE;
import static java.lang.foreign.ValueLayout.JAVA_FLOAT;
import static java.lang.foreign.ValueLayout.JAVA_INT;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.invoke.MethodHandle;
import org.meteora.foreign.Functions;

/**
 * The BLAS inside libtorch, in float32 on host memory. Matrices are row-major here; the Fortran
 * interface reads them as their transposes. A call costs a fraction of a microsecond where a tensor
 * operation costs six. Builds of libtorch that export no BLAS say so by {@link #isAvailable}.
 */
public final class Blas {
  private static final MethodHandle GEMV = StableAbi.optional("sgemv_", "(AAAAAAAAAAA)V");
  private static final MethodHandle GEMM = StableAbi.optional("sgemm_", "(AAAAAAAAAAAAA)V");
  private static final MethodHandle AXPY = StableAbi.optional("saxpy_", "(AAAAAA)V");
  private static final MethodHandle LOCAL_THREADS =
      StableAbi.optional("MKL_Set_Num_Threads_Local", "(I)I");

  /** Arguments by address: two letters, then six numbers, then two factors. */
  private static final ThreadLocal<Arguments> ARGUMENTS = ThreadLocal.withInitial(Arguments::new);

  private static final class Arguments {
    private final MemorySegment memory = Arena.global().allocate(64, 8);
    private final MemorySegment letterA = memory.asSlice(0, 1);
    private final MemorySegment letterB = memory.asSlice(1, 1);
    private final MemorySegment alpha = memory.asSlice(32, 4);
    private final MemorySegment beta = memory.asSlice(36, 4);
    private final MemorySegment[] numbers = new MemorySegment[6];

    Arguments() {
      for (int slot = 0; slot < numbers.length; slot++) {
        numbers[slot] = memory.asSlice(4L + 4L * slot, 4);
      }
    }

    MemorySegment number(int slot, int value) {
      numbers[slot].set(JAVA_INT, 0, value);
      return numbers[slot];
    }

    MemorySegment letter(MemorySegment slot, boolean transpose) {
      slot.set(JAVA_BYTE, 0, (byte) (transpose ? 'T' : 'N'));
      return slot;
    }

    MemorySegment factor(MemorySegment slot, float value) {
      slot.set(JAVA_FLOAT, 0, value);
      return slot;
    }
  }

  private Blas() {}

  /** Whether this libtorch exports its BLAS. */
  public static boolean isAvailable() {
    return GEMV != null && GEMM != null && AXPY != null;
  }

  /** {@code y = alpha · A x + beta · y}, A {@code (rows, columns)}. */
  public static void multiply(
      int rows,
      int columns,
      float alpha,
      MemorySegment a,
      MemorySegment x,
      float beta,
      MemorySegment y) {
    gemv(true, rows, columns, alpha, a, x, beta, y);
  }

  /** {@code y = alpha · Aᵀ x + beta · y}, A {@code (rows, columns)}. */
  public static void multiplyTransposed(
      int rows,
      int columns,
      float alpha,
      MemorySegment a,
      MemorySegment x,
      float beta,
      MemorySegment y) {
    gemv(false, rows, columns, alpha, a, x, beta, y);
  }

  private static void gemv(
      boolean transpose,
      int rows,
      int columns,
      float alpha,
      MemorySegment a,
      MemorySegment x,
      float beta,
      MemorySegment y) {
    var by = ARGUMENTS.get();
    try {
      GEMV.invokeExact(
          by.letter(by.letterA, transpose),
          by.number(0, columns),
          by.number(1, rows),
          by.factor(by.alpha, alpha),
          a,
          by.number(2, columns),
          x,
          by.number(3, 1),
          by.factor(by.beta, beta),
          y,
          by.number(4, 1));
    } catch (Throwable e) {
      throw Functions.unchecked(e);
    }
  }

  /**
   * How many threads BLAS calls of the calling thread may use, where the library can be told: small
   * products lose more by waking threads than they gain.
   *
   * @param threads at least 1; 0 for the library's own choice
   */
  public static void threads(int threads) {
    if (LOCAL_THREADS != null) {
      try {
        int before = (int) LOCAL_THREADS.invokeExact(threads);
        assert before >= 0;
      } catch (Throwable e) {
        throw Functions.unchecked(e);
      }
    }
  }

  /** {@code y += alpha · x}, {@code count} numbers. */
  public static void add(int count, float alpha, MemorySegment x, MemorySegment y) {
    var by = ARGUMENTS.get();
    try {
      AXPY.invokeExact(
          by.number(0, count), by.factor(by.alpha, alpha), x, by.number(1, 1), y, by.number(2, 1));
    } catch (Throwable e) {
      throw Functions.unchecked(e);
    }
  }

  /** {@code C = A Bᵀ}: A {@code (m, k)}, B {@code (n, k)}, C {@code (m, n)}. */
  public static void productTransposed(
      int m, int n, int k, MemorySegment a, MemorySegment b, MemorySegment c) {
    product(false, true, m, n, k, a, k, b, k, 0, c, n);
  }

  /** {@code C = A B}: A {@code (m, k)}, B {@code (k, n)}, C {@code (m, n)}. */
  public static void product(
      int m, int n, int k, MemorySegment a, MemorySegment b, MemorySegment c) {
    product(false, false, m, n, k, a, k, b, n, 0, c, n);
  }

  /**
   * {@code C = A' B' + beta · C}, A' being A or its transpose, {@code (m, k)}; B' {@code (k, n)}; C
   * {@code (m, n)}. Rows of the stored matrices are {@code lda}, {@code ldb} and {@code ldc}
   * numbers apart.
   */
  public static void product(
      boolean transposeA,
      boolean transposeB,
      int m,
      int n,
      int k,
      MemorySegment a,
      int lda,
      MemorySegment b,
      int ldb,
      float beta,
      MemorySegment c,
      int ldc) {
    var by = ARGUMENTS.get();
    try {
      // row-major C = A B is column-major Cᵀ = Bᵀ Aᵀ
      GEMM.invokeExact(
          by.letter(by.letterA, transposeB),
          by.letter(by.letterB, transposeA),
          by.number(0, n),
          by.number(1, m),
          by.number(2, k),
          by.factor(by.alpha, 1),
          b,
          by.number(3, ldb),
          a,
          by.number(4, lda),
          by.factor(by.beta, beta),
          c,
          by.number(5, ldc));
    } catch (Throwable e) {
      throw Functions.unchecked(e);
    }
  }
}
