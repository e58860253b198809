package org.meteora.cuda.driver;

import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.Arena;
import java.util.Arrays;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import org.meteora.cuda.driver.Cublas.Matrix;

/**
 * What the GPU's copy engine needs to know of a matrix of 16-bit numbers {@code (rows, columns)},
 * so that it copies pieces of some rows and 1024 columns by one request. The columns are shown in
 * two dimensions, since a piece has at most 256 of each.
 *
 * @param opaque 128 bytes that only the driver reads
 */
@CStruct.Align(64)
public record TensorMap(@CStruct.Count(16) long[] opaque) {
  private static final int UINT16 = 1;
  private static final int NO_L2_PROMOTION = 0; // with it a product took 1.5 µs longer

  private static final int SWIZZLE_128B = 3;

  /**
   * @param address 16-byte aligned
   * @param columns a multiple of 8
   * @param pieceRows rows of a piece; those beyond the matrix arrive as zeros, and so do columns
   * @param pieceColumns columns of a piece, a multiple of 256
   * @return for a kernel's parameter
   */
  public static TensorMap encode(
      long address, int rows, int columns, int pieceRows, int pieceColumns) {
    int inner = Math.min(256, Integer.lowestOneBit(columns));
    return encode(
        address,
        new long[] {inner, columns / inner, rows},
        new long[] {2L * inner, 2L * columns},
        new int[] {inner, pieceColumns / inner, pieceRows},
        0);
  }

  /**
   * Of pieces of {@code pieceChunks} times 64 columns, which arrive one behind the other; 16 bytes
   * {@code c} of a row {@code r} at place {@code c ^ r % 8}. The dimensions are 64 columns, rows,
   * columns / 64.
   *
   * @param address 16-byte aligned
   * @param columns a multiple of 64
   * @param pieceRows rows of a piece, 256 at most; those beyond the matrix arrive as zeros
   * @return for a kernel's parameter
   */
  public static TensorMap swizzled(
      long address, int rows, int columns, int pieceRows, int pieceChunks) {
    return encode(
        address,
        new long[] {64, rows, columns / 64},
        new long[] {2L * columns, 128},
        new int[] {64, pieceRows, pieceChunks},
        SWIZZLE_128B);
  }

  /** What a map says, and all of it: of memory that was freed and taken again it is still true. */
  private record Tiles(long address, int rows, int columns, int stride, int pieceRows) {}

  private static final Map<Tiles, TensorMap> TILES = new ConcurrentHashMap<>();
  private static final int MOST_TILES = 1 << 14;

  /**
   * Of pieces of 64 columns, laid out as {@link #swizzled} has them, of a matrix as it lies in
   * memory, perhaps a part of a wider one, in two dimensions. Kept, since a pass asks for the same
   * ones every time, and launches wait for it.
   *
   * @param matrix 16-byte aligned, and so its rows
   * @param pieceRows rows of a piece, 256 at most; what is beyond the matrix arrives as zeros
   * @return for a kernel's parameter
   */
  public static TensorMap of(Matrix matrix, int pieceRows) {
    if (TILES.size() > MOST_TILES) {
      TILES.clear();
    }
    var tiles =
        new Tiles(matrix.address(), matrix.rows(), matrix.columns(), matrix.stride(), pieceRows);
    return TILES.computeIfAbsent(
        tiles,
        it ->
            encode(
                it.address,
                new long[] {it.columns, it.rows},
                new long[] {2L * it.stride},
                new int[] {64, it.pieceRows},
                SWIZZLE_128B));
  }

  private static TensorMap encode(
      long address, long[] sizes, long[] strides, int[] piece, int swizzle) {
    try (var arena = Arena.ofConfined()) {
      var map = arena.allocate(128, 64);
      var every = new int[sizes.length];
      Arrays.fill(every, 1);
      CudaDriver.check(
          "describing a matrix of " + Arrays.toString(sizes),
          () ->
              (int)
                  CudaDriver.TENSOR_MAP.invokeExact(
                      map.address(),
                      UINT16,
                      sizes.length,
                      address,
                      arena.allocateFrom(JAVA_LONG, sizes).address(),
                      arena.allocateFrom(JAVA_LONG, strides).address(),
                      arena.allocateFrom(JAVA_INT, piece).address(),
                      arena.allocateFrom(JAVA_INT, every).address(),
                      0,
                      swizzle,
                      NO_L2_PROMOTION,
                      0));
      return new TensorMap(map.toArray(JAVA_LONG));
    }
  }
}
