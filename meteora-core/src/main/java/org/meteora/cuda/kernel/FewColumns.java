package org.meteora.cuda.kernel;

import java.util.List;
import org.meteora.cuda.driver.Kernel;
import org.meteora.cuda.driver.Shape;
import org.meteora.tensor.Dtype;

/**
 * {@code y = x · wᵀ} for many rows and few columns, all gates and A of linears with one input: a
 * library's product of such a shape takes longer than the linears themselves. In 16 bits, on tensor
 * cores.
 *
 * @param columns of y, rows of w
 * @param k elements of a row of x and of w
 */
public record FewColumns(Kernels kernels, int rows, int columns, int k) {
  /** Columns at most for which this is the quicker form; not measured beyond. */
  private static final int MAX_COLUMNS = 1024;

  /** What the stages of a block take. */
  private static final int STAGES_BYTES = 4 * (64 + 128) * 128;

  record DecodeFewColumns(long x, long w, long parts, int rows, int columns, int k, int slice) {}

  record DecodeSumParts(long parts, long y, int rows, int columns, int slices, int ld) {}

  /** Whether the kernels take such a product. */
  public static boolean takes(Kernels kernels, long w, int columns, int k) {
    return kernels.constants().dtype() != Dtype.F32
        && kernels.cuda().capability() >= 80
        && w % 16 == 0
        && k % 32 == 0
        && columns <= MAX_COLUMNS;
  }

  /**
   * Whether it goes by way of shared memory. That makes a step of Llama-3-8B's shapes with 28
   * adapters of rank 8 on an H100 0.3 ms slower at 64 rows, 0.04 ms faster at 128 and 1.25 ms at
   * 256; 17 and 32 rows are within noise. 96 is not measured, and has as many blocks as 128.
   */
  public static boolean isStaged(Kernels kernels, int rows) {
    return rows > 64 && kernels.cuda().capability() >= 90;
  }

  /** Elements of k in a slice: the more blocks there are besides, the fewer are needed. */
  private int slice() {
    if (isStaged(kernels, rows)) {
      var tiles = Math.ceilDiv(rows, 64) * Math.ceilDiv(columns, 128);
      return Math.ceilDiv(
              Math.ceilDiv(k, 64), Math.max(1, kernels.cuda().multiprocessors() / tiles))
          * 64;
    }
    return Math.ceilDiv(k / 32, rows <= 64 ? 32 : rows <= 128 ? 16 : 8) * 32;
  }

  /** Slices that {@link #parts} leaves. */
  public int slices() {
    return Math.ceilDiv(k, slice());
  }

  /** Floats of scratch memory. */
  public long scratchFloats() {
    return (long) slices() * rows * columns;
  }

  /**
   * The two launches of a product: its parts, one of each slice of k, and their sum.
   *
   * @param x (rows, k)
   * @param w (columns, k)
   * @param y float32 (rows, ld)
   * @param scratch {@link #scratchFloats}
   */
  public List<Kernel.Launch> launches(long x, long w, long y, long scratch, int ld) {
    return List.of(
        parts(x, w, scratch),
        kernels.launch(
            KernelName.DECODE_SUM_PARTS,
            Shape.of(Math.ceilDiv(columns, 128), rows, 1, 128),
            new DecodeSumParts(scratch, y, rows, columns, slices(), ld)));
  }

  /** The first of {@link #launches} alone, which leaves {@code (slices, rows, columns)}. */
  public Kernel.Launch parts(long x, long w, long parts) {
    var argument = new DecodeFewColumns(x, w, parts, rows, columns, k, slice());
    if (!isStaged(kernels, rows)) {
      return kernels.launch(
          KernelName.DECODE_FEW_COLUMNS,
          Shape.of(slices(), Math.ceilDiv(rows, 64), Math.ceilDiv(columns, 256), 512),
          argument);
    }
    return kernels.launch(
        KernelName.DECODE_FEW_COLUMNS_STAGED,
        Shape.of(slices(), Math.ceilDiv(rows, 64), Math.ceilDiv(columns, 128), 256)
            .withShared(STAGES_BYTES),
        argument);
  }
}
