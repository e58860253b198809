package org.meteora.cuda.kernel;

import static org.meteora.cuda.kernel.SummedProducts.CLUSTER;
import static org.meteora.cuda.kernel.SummedProducts.COLUMNS;
import static org.meteora.cuda.kernel.SummedProducts.INNER;
import static org.meteora.cuda.kernel.SummedProducts.ROWS;
import static org.meteora.cuda.kernel.SummedProducts.SHARED;
import static org.meteora.cuda.kernel.SummedProducts.THREADS;

import java.util.List;
import org.meteora.cuda.driver.Cublas.Matrix;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Shape;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.driver.TensorMap;
import org.meteora.cuda.kernel.SummedProducts.ProductSum;
import org.meteora.cuda.kernel.SummedProducts.SumOutput;
import org.meteora.cuda.kernel.SummedProducts.Tiles;
import org.meteora.cuda.kernel.TrainingKernels.Dropout;
import org.meteora.tensor.Dtype;

/**
 * Products of training with an input x of which dropout keeps a part for the adapters, without that
 * part being written: x is read once for adapters and gates, and dropped on its way to the tensor
 * cores. S is the stack of all A and gates of the linears with this input.
 *
 * <p>Which elements are kept comes as bits, {@code (in / 64, tokens)} of 64 of them: of a token's
 * 64 columns bit {@code 8 (c % 8) + c / 8} is column c's.
 *
 * <p>For f16 and bf16, compute capability 9.0, 16-byte aligned rows.
 */
public final class MaskedProducts {
  private static final int MOST_WHOLE = 96; // columns of gates

  /**
   * Mirrors the struct of this name in {@code product_masked.cuh}.
   *
   * @param masked columns that are multiplied by what is kept
   * @param rows of a
   */
  record ProductMasked(
      ProductSum sum,
      long kept,
      int tokens,
      int masked,
      int columns,
      float scale,
      int rows,
      int stride,
      long y,
      long gradient) {}

  /**
   * x and what is kept of it.
   *
   * @param x {@code (tokens, in)}, as it lies in memory
   * @param kept where the bits are
   * @param ranks columns of S's product that are the adapters', the first ones
   */
  public record Input(Matrix x, long kept, Dropout dropout, int ranks) {}

  private MaskedProducts() {}

  /**
   * Whether the kernels take these, and gain by it.
   *
   * @param columns of S's product, {@code ranks} of which are the adapters'
   */
  public static boolean take(Cuda cuda, Dtype dtype, int tokens, int in, int ranks, int columns) {
    return cuda.capability() == 90
        && dtype != Dtype.F32
        && in % 256 == 0
        && ranks > 0
        && ranks % 32 == 0
        && columns % 8 == 0
        && columns - ranks <= MOST_WHOLE
        && ranks % COLUMNS + (columns - ranks + 31) / 32 * 32 <= COLUMNS
        && (columns == ranks || ranks % COLUMNS != 0) // a tile of gates alone costs as much as one
        && isQuicker(cuda, tokens, in, ranks, columns);
  }

  /**
   * By reckoning, in microseconds of an H100: cuBLAS takes 6 for each of four products and their
   * arithmetic at 650 TFLOP/s, and x goes through memory three times more, at 3 TB/s.
   */
  private static boolean isQuicker(Cuda cuda, int tokens, int in, int ranks, int columns) {
    int tiles = tiles(ranks, columns);
    double both =
        new Tiles(Math.ceilDiv(tokens, ROWS) * tiles, in / INNER, Tiles.clusters(cuda)).micros()
            + new Tiles(in / ROWS * tiles, Math.ceilDiv(tokens, INNER), Tiles.clusters(cuda))
                .micros();
    double elements = (double) tokens * in;
    return both < 24 + 4 * elements * columns / 650e6 + 6 * elements / 3e6;
  }

  /** Of COLUMNS; gates' are beside the last of the adapters', or by themselves. */
  private static int tiles(int ranks, int columns) {
    return columns == ranks ? Math.ceilDiv(ranks, COLUMNS) : ranks / COLUMNS + 1;
  }

  /**
   * {@code [dropout(x) Aᵀ | x Gᵀ]}.
   *
   * @param kernels for the matrices' dtype and one adapter a token
   * @param stack S {@code (columns, in)}
   * @param rows {@code (tokens, columns)}; written
   */
  public static void rows(Kernels kernels, Input input, Matrix stack, Matrix rows, Stream stream) {
    var x = input.x();
    launch(
        kernels,
        KernelName.PRODUCT_MASKED,
        input,
        TensorMap.of(x, ROWS / CLUSTER),
        TensorMap.of(stack, COLUMNS / 2),
        TensorMap.of(
            new Matrix(rows.address(), rows.rows(), input.ranks(), rows.stride(), rows.dtype()),
            64),
        x.rows(),
        x.columns(),
        rows,
        0,
        stream);
  }

  /**
   * {@code [∂zᵀ dropout(x); ∂lᵀ x]}.
   *
   * @param slope of S's product {@code (tokens, columns)}, or of its first columns
   * @param gradient float32 {@code (columns, in)}; written
   */
  public static void gradient(
      Kernels kernels, Input input, Matrix slope, long gradient, Stream stream) {
    var x = input.x();
    var b = TensorMap.of(slope, INNER);
    launch(
        kernels,
        KernelName.PRODUCT_MASKED_GRADIENT,
        input,
        TensorMap.of(x, INNER),
        b,
        b,
        x.columns(),
        x.rows(),
        slope,
        gradient,
        stream);
  }

  private static void launch(
      Kernels kernels,
      KernelName name,
      Input input,
      TensorMap a,
      TensorMap b,
      TensorMap y,
      int rows,
      int inner,
      Matrix of,
      long gradient,
      Stream stream) {
    int columns = of.columns();
    int beside = tiles(input.ranks(), columns);
    int pairs = Math.ceilDiv(rows, ROWS);
    var tiles =
        new Tiles(pairs * beside, Math.ceilDiv(inner, INNER), Tiles.clusters(kernels.cuda()));
    var sum =
        SummedProducts.product(
            kernels.cuda(),
            List.of(a),
            List.of(b),
            List.of(new SumOutput(y, input.ranks(), 1, beside)),
            new int[] {inner, 0, 0, 0, 0, 0},
            gradient == 0 ? 0 : 1,
            pairs,
            Dropout.NONE,
            tiles,
            tiles.split(),
            stream);
    kernels.run(
        name,
        Shape.of(tiles.launched(tiles.split()) * CLUSTER, 1, 1, THREADS)
            .withShared(SHARED)
            .withCluster(CLUSTER),
        new ProductMasked(
            sum,
            input.kept(),
            input.x().rows(),
            input.ranks(),
            columns,
            input.dropout().scale(),
            rows,
            of.stride(),
            of.address(),
            gradient),
        stream);
  }
}
