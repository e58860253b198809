package org.meteora.cuda.kernel;

import java.util.List;
import java.util.Optional;
import org.meteora.cuda.driver.Kernel;

/**
 * {@code y = x · [W0; W1; …]ᵀ} for 17 to 256 rows of x: several weight matrices that share their
 * input are read in one launch, and multiplied on tensor cores. A matrix' outputs begin at whole
 * eights. Where there are too few rows of weights for all multiprocessors, k is cut into {@link
 * #slots} slices, each with its own copy of y {@code (slots, rows, ld)}; the reader sums them, and
 * reads nothing between the outputs of two matrices.
 *
 * <p>For f16 and bf16, compute capability 9.0, k a multiple of 64 and 16-byte aligned pointers.
 */
public sealed interface ManyRowsProduct permits WideProduct, TiledProduct {
  /** Outputs that begin at whole so many. */
  int GROUP = 8;

  /** {@code rows × k} weights at {@code address}. */
  record Matrix(long address, int rows) {
    int groups() {
      return Math.ceilDiv(rows, GROUP);
    }

    /** Where the outputs of each begin in a row of y. */
    static int[] places(List<Matrix> matrices) {
      var at = new int[matrices.size()];
      for (var i = 1; i < at.length; i++) {
        at[i] = at[i - 1] + GROUP * matrices.get(i - 1).groups();
      }
      return at;
    }
  }

  /** Such a product, where the kernels take it. */
  static Optional<ManyRowsProduct> of(Kernels kernels, List<Matrix> matrices, int k, int rows) {
    return rows <= WideProduct.MAX_ROWS
        ? WideProduct.of(kernels, matrices, k, rows).map(product -> product)
        : TiledProduct.of(kernels, matrices, k, rows).map(product -> product);
  }

  /** Copies of y that must be summed. */
  int slots();

  /**
   * @param x (rows, k) in the kernels' dtype, 16-byte aligned
   * @param y float32 (slots, rows, ld), 16-byte aligned
   * @param ld a multiple of 4, that all outputs fit in
   */
  Kernel.Launch launch(long x, long y, int ld, boolean overlap);
}
