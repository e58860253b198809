package org.meteora.cuda.kernel;

import java.util.List;
import org.meteora.cuda.driver.Kernel;
import org.meteora.cuda.driver.Shape;
import org.meteora.tensor.Dtype;

/**
 * {@code y = x · wᵀ} for many rows and few columns, all gates and A of linears with one input: a
 * library's product of such a shape takes longer than the linears themselves. In 16 bits, on tensor
 * cores.
 */
public final class FewColumns {
  /** Columns at most for which this is the quicker form; not measured beyond. */
  private static final int MAX_COLUMNS = 1024;

  /** Mirrors the struct of this name in {@code decode_wide.cuh}. */
  record DecodeFewColumns(long x, long w, long parts, int rows, int columns, int k, int slice) {}

  /** Mirrors the struct of this name in {@code decode_wide.cuh}. */
  record DecodeSumParts(long parts, long y, int rows, int columns, int slices, int ld) {}

  private FewColumns() {}

  /** Whether the kernels take such a product. */
  public static boolean takes(Kernels kernels, long w, int columns, int k) {
    return kernels.constants().dtype() != Dtype.F32
        && kernels.cuda().capability() >= 80
        && w % 16 == 0
        && k % 32 == 0
        && columns <= MAX_COLUMNS;
  }

  /** Elements of k in a slice: the more rows there are, the fewer slices are needed. */
  private static int slice(int rows, int k) {
    var slices = rows <= 64 ? 32 : rows <= 128 ? 16 : 8;
    return (k / 32 + slices - 1) / slices * 32;
  }

  private static int slices(int rows, int k) {
    return (k + slice(rows, k) - 1) / slice(rows, k);
  }

  /** Floats of scratch memory. */
  public static long scratchFloats(int rows, int columns, int k) {
    return (long) slices(rows, k) * rows * columns;
  }

  /**
   * The two launches of a product: its parts, one of each slice of k, and their sum.
   *
   * @param x (rows, k)
   * @param w (columns, k)
   * @param y float32 (rows, ld)
   * @param scratch {@link #scratchFloats}
   */
  public static List<Kernel.Launch> launches(
      Kernels kernels, long x, long w, long y, long scratch, int rows, int columns, int k, int ld) {
    var slices = slices(rows, k);
    return List.of(
        kernels.launch(
            KernelName.DECODE_FEW_COLUMNS,
            Shape.of(slices, (rows + 63) / 64, (columns + 255) / 256, 512),
            new DecodeFewColumns(x, w, scratch, rows, columns, k, slice(rows, k))),
        kernels.launch(
            KernelName.DECODE_SUM_PARTS,
            Shape.of((columns + 127) / 128, rows, 1, 128),
            new DecodeSumParts(scratch, y, rows, columns, slices, ld)));
  }
}
