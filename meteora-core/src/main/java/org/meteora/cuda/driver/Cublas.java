package org.meteora.cuda.driver;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.invoke.MethodHandle;
import java.util.List;
import java.util.Optional;
import org.meteora.UserException;
import org.meteora.foreign.Functions;
import org.meteora.tensor.Dtype;

/**
 * Matrix products by cuBLAS, the library that libtorch itself multiplies with, on one stream; its
 * workspace is its own, so that products can be captured in a graph. Not thread-safe.
 */
public final class Cublas implements AutoCloseable {
  private static final List<String> NAMES =
      List.of("libcublas.so.13", "libcublas.so.12", "libcublas.so.11");

  /** What cuBLAS advises for compute capability 9.0. */
  private static final long WORKSPACE = 32L << 20;

  private static final int TRANSPOSED = 1;
  private static final int AS_IT_IS = 0;
  private static final int COMPUTE_32F = 68;
  private static final int DEFAULT_ALGORITHM = -1;

  /** The factors of a product and of what it is added to, which cuBLAS reads from memory. */
  private static final MemorySegment ONE = Arena.global().allocateFrom(JAVA_FLOAT, 1);

  private static final MemorySegment ZERO = Arena.global().allocateFrom(JAVA_FLOAT, 0);

  private final long handle;
  private final DeviceMemory workspace;

  /** The library's functions, where it is found. */
  private static final class Library {
    static final Optional<SymbolLookup> FOUND =
        CudaLibraries.find(NAMES, "libcublas(-[0-9a-f]+)?\\.so.*");
    static final MethodHandle CREATE = bind("cublasCreate_v2", "P");
    static final MethodHandle DESTROY = bind("cublasDestroy_v2", "P");
    static final MethodHandle SET_STREAM = bind("cublasSetStream_v2", "PP");
    static final MethodHandle SET_WORKSPACE = bind("cublasSetWorkspace_v2", "PPP");
    static final MethodHandle PRODUCT = bind("cublasGemmEx", "PIIIIIPPIIPIIPPIIII");

    private static MethodHandle bind(String name, String signature) {
      return FOUND
          .flatMap(library -> library.find(name))
          .map(symbol -> Functions.bind(symbol, "(" + signature.replace('P', 'J') + ")I"))
          .orElse(null);
    }
  }

  /** Whether cuBLAS is found, as libtorch brings it along. */
  public static boolean isAvailable() {
    return Library.PRODUCT != null;
  }

  /**
   * @param stream the one that all products run on
   * @throws UserException without cuBLAS, or without memory for its workspace
   */
  public Cublas(Cuda cuda, Stream stream) {
    if (!isAvailable()) {
      throw new UserException("no cuBLAS here: none of " + String.join(", ", NAMES) + " is found");
    }
    workspace = cuda.allocate(WORKSPACE);
    try {
      handle = Functions.written(out -> call("starting", Library.CREATE, out.address()));
    } catch (RuntimeException e) {
      workspace.close();
      throw e;
    }
    try {
      call("choosing a stream", Library.SET_STREAM, handle, stream.handle());
      call("giving a workspace", Library.SET_WORKSPACE, handle, workspace.address(), WORKSPACE);
    } catch (RuntimeException e) {
      close();
      throw e;
    }
  }

  private static void call(String what, MethodHandle function, Object... arguments) {
    check(what, (int) Functions.call(function, arguments));
  }

  private static void check(String what, long code, Object... numbers) {
    if (code != 0) {
      throw new UserException("cuBLAS: " + what.formatted(numbers) + " failed with status " + code);
    }
  }

  /**
   * A row-major matrix, perhaps a part of a wider one.
   *
   * @param address of its first element
   * @param rows as it lies in memory, like {@code columns}: of a transpose its columns
   * @param stride elements from one row to the next
   * @param isTransposed whether its transpose is meant
   */
  public record Matrix(
      long address, int rows, int columns, int stride, Dtype dtype, boolean isTransposed) {
    /** As it lies in memory. */
    public Matrix(long address, int rows, int columns, int stride, Dtype dtype) {
      this(address, rows, columns, stride, dtype, false);
    }

    /** A whole one. */
    public static Matrix of(long address, int rows, int columns, Dtype dtype) {
      return new Matrix(address, rows, columns, columns, dtype);
    }

    /** The same memory as the other's transpose. */
    public Matrix transpose() {
      return new Matrix(address, rows, columns, stride, dtype, !isTransposed);
    }

    /**
     * The inner dimension of the product {@code this = a · b}.
     *
     * @throws IllegalArgumentException when the shapes are not those of a product, or this is a
     *     transpose, which cannot be written
     */
    public int innerOf(Matrix a, Matrix b) {
      int inner = a.isTransposed ? a.rows : a.columns;
      if (isTransposed
          || (a.isTransposed ? a.columns : a.rows) != rows
          || (b.isTransposed ? b.rows : b.columns) != columns
          || (b.isTransposed ? b.columns : b.rows) != inner) {
        throw new IllegalArgumentException(this + " is no product of " + a + " and " + b);
      }
      return inner;
    }
  }

  private static int type(Dtype dtype) {
    return dtype == Dtype.F32 ? 0 : dtype == Dtype.F16 ? 2 : 14;
  }

  /**
   * Queues {@code c = a · b}, or with {@code add} c += it, summed in float32.
   *
   * @param c {@code (m, n)} of the others' dtype, or float32
   * @param a {@code (m, k)}
   * @param b {@code (k, n)} of a's dtype: f32, f16 or bf16
   * @throws IllegalArgumentException for other shapes
   */
  public void multiply(Matrix c, Matrix a, Matrix b, boolean add) {
    int m = c.rows();
    int n = c.columns();
    int k = c.innerOf(a, b);
    if (m == 0 || n == 0) {
      return;
    }
    // column by column, as cuBLAS sees matrices, cᵀ = bᵀ · aᵀ
    var code =
        Functions.call(
            () ->
                (int)
                    Library.PRODUCT.invokeExact(
                        handle,
                        b.isTransposed() ? TRANSPOSED : AS_IT_IS,
                        a.isTransposed() ? TRANSPOSED : AS_IT_IS,
                        n,
                        m,
                        k,
                        ONE.address(),
                        b.address(),
                        type(b.dtype()),
                        b.stride(),
                        a.address(),
                        type(a.dtype()),
                        a.stride(),
                        add ? ONE.address() : ZERO.address(),
                        c.address(),
                        type(c.dtype()),
                        c.stride(),
                        COMPUTE_32F,
                        DEFAULT_ALGORITHM));
    check("a product of %d × %d × %d", code, m, n, k);
  }

  /** Call once the stream has come to an end. */
  @Override
  public void close() {
    call("ending", Library.DESTROY, handle);
    workspace.close();
  }
}
