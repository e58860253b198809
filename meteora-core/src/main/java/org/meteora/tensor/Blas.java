package org.meteora.tensor;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;
import static java.lang.foreign.ValueLayout.JAVA_INT;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.invoke.MethodHandle;
import java.util.Arrays;
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

  private static final MemorySegment AS_IT_IS = Arena.global().allocateFrom("N");
  private static final MemorySegment TRANSPOSED = Arena.global().allocateFrom("T");
  private static final MemorySegment NEXT = Arena.global().allocateFrom(JAVA_INT, 1);

  private static final ThreadLocal<Arguments> ARGUMENTS = ThreadLocal.withInitial(Arguments::new);

  /** Numbers are given by their addresses. */
  private static final class Arguments {
    private final MemorySegment[] slots = new MemorySegment[8];

    Arguments() {
      Arrays.setAll(slots, slot -> Arena.global().allocate(JAVA_INT));
    }

    MemorySegment of(int slot, int value) {
      slots[slot].set(JAVA_INT, 0, value);
      return slots[slot];
    }

    MemorySegment of(int slot, float value) {
      slots[slot].set(JAVA_FLOAT, 0, value);
      return slots[slot];
    }
  }

  /**
   * A matrix.
   *
   * @param stride numbers from one row to the next
   * @param isTransposed whether its transpose is meant
   */
  public record Matrix(MemorySegment memory, int stride, boolean isTransposed) {
    /** As it lies in memory. */
    public Matrix(MemorySegment memory, int stride) {
      this(memory, stride, false);
    }

    /** The same memory as the other's transpose. */
    public Matrix transpose() {
      return new Matrix(memory, stride, !isTransposed);
    }

    private MemorySegment letter() {
      return isTransposed ? TRANSPOSED : AS_IT_IS;
    }
  }

  private Blas() {}

  /** Whether this libtorch exports its BLAS. */
  public static boolean isAvailable() {
    return GEMV != null && GEMM != null && AXPY != null;
  }

  /** {@code y = A x}, A {@code (rows, columns)}. */
  public static void multiply(
      int rows, int columns, MemorySegment a, MemorySegment x, MemorySegment y) {
    gemv(TRANSPOSED, rows, columns, 1, a, x, 0, y);
  }

  /** {@code y += alpha · Aᵀ x}, A {@code (rows, columns)}. */
  public static void addTransposed(
      int rows, int columns, float alpha, MemorySegment a, MemorySegment x, MemorySegment y) {
    gemv(AS_IT_IS, rows, columns, alpha, a, x, 1, y);
  }

  private static void gemv(
      MemorySegment letter,
      int rows,
      int columns,
      float alpha,
      MemorySegment a,
      MemorySegment x,
      float beta,
      MemorySegment y) {
    var by = ARGUMENTS.get();
    var width = by.of(0, columns);
    try {
      GEMV.invokeExact(
          letter,
          width,
          by.of(1, rows),
          by.of(2, alpha),
          a,
          width,
          x,
          NEXT,
          by.of(3, beta),
          y,
          NEXT);
    } catch (Throwable e) {
      throw Functions.unchecked(e);
    }
  }

  /**
   * How many threads BLAS calls of the calling thread may use, where the library can be told: small
   * products lose more by waking threads than they gain.
   *
   * @param threads at least 1; 0 for the library's own choice
   * @return what it was before
   */
  static int threads(int threads) {
    return LOCAL_THREADS == null
        ? 0
        : (int) Functions.call(() -> (int) LOCAL_THREADS.invokeExact(threads));
  }

  /** {@code y += alpha · x}, {@code count} numbers. */
  public static void add(int count, float alpha, MemorySegment x, MemorySegment y) {
    var by = ARGUMENTS.get();
    try {
      AXPY.invokeExact(by.of(0, count), by.of(1, alpha), x, NEXT, y, NEXT);
    } catch (Throwable e) {
      throw Functions.unchecked(e);
    }
  }

  /** {@code C = A B + beta · C}: A {@code (m, k)}, B {@code (k, n)}, C {@code (m, n)}. */
  public static void product(int m, int n, int k, Matrix a, Matrix b, float beta, Matrix c) {
    var by = ARGUMENTS.get();
    try {
      // row-major C = A B is column-major Cᵀ = Bᵀ Aᵀ
      GEMM.invokeExact(
          b.letter(),
          a.letter(),
          by.of(0, n),
          by.of(1, m),
          by.of(2, k),
          by.of(3, 1f),
          b.memory,
          by.of(4, b.stride),
          a.memory,
          by.of(5, a.stride),
          by.of(6, beta),
          c.memory,
          by.of(7, c.stride));
    } catch (Throwable e) {
      throw Functions.unchecked(e);
    }
  }
}
