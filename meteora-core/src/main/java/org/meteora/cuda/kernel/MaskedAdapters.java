package org.meteora.cuda.kernel;

import java.util.List;
import org.meteora.cuda.driver.CStruct.Count;
import org.meteora.cuda.driver.Kernel;
import org.meteora.cuda.driver.Shape;

/**
 * Adapters of gate and up of a decode step of many rows in the masked form: a linear's whole B is
 * read once, and multiplied on tensor cores by the rows' coefficients, zeros for adapters not
 * chosen. That is cheaper than reading every row's own where most adapters are chosen by some row.
 * In 16 bits on compute capability 9.0 and newer; the coefficients are rounded to 16 bits as in
 * prefill.
 */
public final class MaskedAdapters {
  /** Outputs of a block, and the ranks that it has in shared memory at a time. */
  private static final int OUTS = 64;

  private static final int RANKS = 256;

  /**
   * A linear whose adapters' coefficients are there; mirrors the struct of this name in {@code
   * decode_masked.cuh}.
   *
   * @param b Bᵀ (Σr, out); 0 without adapters, like all but {@code bias}, {@code outAt} and {@code
   *     out}
   * @param bias (out), or 0
   * @param coefficients (rows in whole 16, stride), as the tensor cores take them, or (rows,
   *     stride)
   * @param outAt where the outputs lie in a row of y
   * @param stride Σr in whole 32
   */
  public record MaskedLinear(
      long b, long bias, long coefficients, int outAt, int out, int ranks, int stride) {
    private int sharedBytes() {
      return Math.min(stride, RANKS) * OUTS * 2;
    }
  }

  /**
   * Mirrors the struct of this name in {@code decode_masked.cuh}.
   *
   * @param parts float32 (slices, rows, columns), of gates and A
   * @param y where their sums go in the product's first row
   * @param byRow whether coefficients lie row by row
   */
  public record DecodeSumRoute(
      ProductOutput product,
      @Count(2) List<RoutedLinear> linear,
      @Count(2) List<MaskedLinear> masked,
      long parts,
      long y,
      int columns,
      int slices,
      boolean byRow) {}

  public record DecodeMaskedSiluUp(
      MaskedLinear gate, MaskedLinear up, long y, long out, int rows, int ld) {}

  private MaskedAdapters() {}

  /** Elements of a row of coefficients. */
  public static int stride(int ranks) {
    return (ranks + 31) / 32 * 32;
  }

  public static int coefficientRows(int rows) {
    return (rows + 15) / 16 * 16;
  }

  /** Whether the kernels take a linear. */
  public static boolean takes(int outAt, int out, int ld, long b) {
    return out % 8 == 0 && outAt % 4 == 0 && ld % 4 == 0 && b % 16 == 0;
  }

  /**
   * Sums the slices of a product of gates and A, where there are some, chooses, and writes the
   * coefficients.
   */
  public static Kernel.Launch sumRoute(Kernels kernels, DecodeSumRoute argument, boolean overlap) {
    return kernels.launch(
        KernelName.DECODE_SUM_ROUTE,
        Shape.of(argument.product().rows(), 1, 1, argument.columns() > 0 ? 512 : 64)
            .withOverlap(overlap),
        argument);
  }

  /** Gate and up with their adapters, and what follows. */
  public static Kernel.Launch siluUp(
      Kernels kernels, DecodeMaskedSiluUp argument, boolean overlap) {
    var blocks = (argument.gate().out() + OUTS - 1) / OUTS;
    var name =
        argument.rows() <= 64
            ? KernelName.DECODE_MASKED_SILU_UP64
            : KernelName.DECODE_MASKED_SILU_UP128;
    return kernels.launch(
        name,
        Shape.of(blocks, 1, 1, 256)
            .withShared(argument.gate().sharedBytes() + argument.up().sharedBytes())
            .withOverlap(overlap),
        argument);
  }
}
