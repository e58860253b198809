package org.meteora.cuda.kernel;

import static org.meteora.cuda.kernel.SummedProducts.CLUSTER;
import static org.meteora.cuda.kernel.SummedProducts.INNER;
import static org.meteora.cuda.kernel.SummedProducts.ROWS;
import static org.meteora.cuda.kernel.SummedProducts.THREADS;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Optional;
import java.util.stream.IntStream;
import org.meteora.cuda.driver.CStruct.Count;
import org.meteora.cuda.driver.Cublas;
import org.meteora.cuda.driver.Kernel;
import org.meteora.cuda.driver.Shape;
import org.meteora.cuda.driver.TensorMap;
import org.meteora.cuda.kernel.MaskedAdapters.MaskedLinear;
import org.meteora.cuda.kernel.SummedProducts.Tiles;
import org.meteora.tensor.Dtype;

/**
 * A {@link ManyRowsProduct} for up to {@link #MAX_ROWS} rows of x: tiles of all rows and 224
 * outputs, by pairs of blocks as in {@link SummedProducts}. And gate and up of so many rows, with
 * what follows.
 */
public final class TiledProduct implements ManyRowsProduct {
  /** Rows of x at most. */
  static final int MAX_ROWS = ROWS;

  private static final int MAX_MATRICES = 9; // weights, gates and A of q, k and v
  private static final int MAX_SLICES = 8;

  /** Outputs of a tile; half of them are gate's, half up's. */
  private static final int COLUMNS = 224;

  private static final int BLOCK_ROWS = ROWS / CLUSTER;
  private static final int STAGES = 5;
  private static final int SHARED = STAGES * (BLOCK_ROWS + COLUMNS) * INNER * 2 + 1152;

  /** How long 64 of k take of the tiles at work, by reckoning, on an H100. */
  private static final double CHUNK_MICROS = 0.65;

  /** Bytes a microsecond by which y is written and read, by reckoning. */
  private static final double RESULT_RATE = 4e6;

  /** Mirrors the struct of this name in {@code product_tiled.cuh}. */
  record ProductTiled(
      TensorMap x,
      @Count(MAX_MATRICES) List<TensorMap> w,
      long y,
      int rows,
      int k,
      int ld,
      int slices,
      int matrices,
      @Count(MAX_MATRICES) int[] columns,
      @Count(MAX_MATRICES) int[] at) {}

  /** Mirrors the struct of this name in {@code product_tiled.cuh}. */
  record ProductSiluUp(
      TensorMap x,
      @Count(2) List<TensorMap> w,
      @Count(2) List<TensorMap> coefficients,
      @Count(2) List<TensorMap> b,
      @Count(2) long[] bias,
      long out,
      int rows,
      int k,
      int outs,
      @Count(2) int[] ranks,
      boolean beside) {}

  private final Kernels kernels;
  private final List<Matrix> matrices;
  private final int k;
  private final int rows;
  private final int slices;

  /** Such a product, where the kernels take it. */
  static Optional<TiledProduct> of(Kernels kernels, List<Matrix> matrices, int k, int rows) {
    return takes(kernels, matrices, k, rows)
        ? Optional.of(new TiledProduct(kernels, matrices, k, rows))
        : Optional.empty();
  }

  private static boolean takes(Kernels kernels, List<Matrix> matrices, int k, int rows) {
    return kernels.constants().dtype() != Dtype.F32
        && kernels.cuda().capability() == 90
        && rows <= MAX_ROWS
        && k % INNER == 0
        && matrices.size() <= MAX_MATRICES
        && matrices.stream().allMatch(m -> m.address() % 16 == 0);
  }

  private TiledProduct(Kernels kernels, List<Matrix> matrices, int k, int rows) {
    this.kernels = kernels;
    this.matrices = matrices;
    this.k = k;
    this.rows = rows;
    this.slices =
        IntStream.rangeClosed(1, Math.min(MAX_SLICES, k / INNER))
            .boxed()
            .min(Comparator.comparingDouble(this::micros))
            .orElseThrow();
  }

  private int tiles() {
    return matrices.stream().mapToInt(m -> Math.ceilDiv(m.rows(), COLUMNS)).sum();
  }

  private int clusters(int slices) {
    return Math.min(tiles() * slices, Tiles.clusters(kernels.cuda()));
  }

  private double micros(int slices) {
    var rounds = Math.ceilDiv(tiles() * slices, clusters(slices));
    var columns = GROUP * matrices.stream().mapToInt(Matrix::groups).sum();
    return CHUNK_MICROS * rounds * Math.ceilDiv(k / INNER, slices)
        + slices * 8.0 * rows * columns / RESULT_RATE;
  }

  @Override
  public int slots() {
    return slices;
  }

  @Override
  public Kernel.Launch launch(long x, long y, int ld, boolean overlap) {
    return launch(
        kernels,
        KernelName.PRODUCT_TILED,
        clusters(slices),
        overlap,
        new ProductTiled(
            TensorMap.of(matrix(kernels, x, rows, k), BLOCK_ROWS),
            matrices.stream().map(m -> weights(kernels, m, k)).toList(),
            y,
            rows,
            k,
            ld,
            slices,
            matrices.size(),
            matrices.stream().mapToInt(Matrix::rows).toArray(),
            Matrix.places(matrices)));
  }

  /**
   * Whether {@link #siluUp} takes gate and up.
   *
   * @param b where the B of their adapters are, or 0
   */
  public static boolean takesSiluUp(
      Kernels kernels, List<Matrix> gateUp, int k, int rows, List<Long> b) {
    return takes(kernels, gateUp, k, rows)
        && gateUp.get(0).rows() == gateUp.get(1).rows()
        && gateUp.get(0).rows() % 8 == 0
        && b.stream().allMatch(address -> address % 16 == 0);
  }

  /**
   * {@code silu(gate) · up} with adapters in the masked form.
   *
   * @param x (rows, k) in the kernels' dtype, 16-byte aligned
   * @param gateUp their weights
   * @param adapters their bias and adapters; coefficients {@code (rows, stride)}
   * @param out (rows, outputs of gate), 16-byte aligned
   */
  public static Kernel.Launch siluUp(
      Kernels kernels,
      long x,
      List<Matrix> gateUp,
      List<MaskedLinear> adapters,
      long out,
      int k,
      int rows,
      boolean overlap) {
    var outs = gateUp.getFirst().rows();
    var isBeside = rows <= BLOCK_ROWS;
    var tiles = Math.ceilDiv(Math.ceilDiv(outs, COLUMNS / 2), isBeside ? CLUSTER : 1);
    var pieceRows = isBeside ? BLOCK_ROWS / CLUSTER : BLOCK_ROWS;
    var input = TensorMap.of(matrix(kernels, x, rows, k), pieceRows);
    var coefficients = new ArrayList<TensorMap>();
    var b = new ArrayList<TensorMap>();
    for (var linear : adapters) {
      if (linear.ranks() > 0) {
        var dtype = kernels.constants().dtype();
        var all =
            new Cublas.Matrix(linear.coefficients(), rows, linear.ranks(), linear.stride(), dtype);
        coefficients.add(TensorMap.of(all, pieceRows));
        b.add(TensorMap.of(matrix(kernels, linear.b(), linear.ranks(), outs), INNER));
      } else { // which nobody reads
        coefficients.add(input);
        b.add(input);
      }
    }
    return launch(
        kernels,
        KernelName.PRODUCT_SILU_UP,
        Math.min(tiles, Tiles.clusters(kernels.cuda())),
        overlap,
        new ProductSiluUp(
            input,
            gateUp.stream().map(m -> weights(kernels, m, k)).toList(),
            coefficients,
            b,
            adapters.stream().mapToLong(MaskedLinear::bias).toArray(),
            out,
            rows,
            k,
            outs,
            adapters.stream().mapToInt(MaskedLinear::ranks).toArray(),
            isBeside));
  }

  private static Cublas.Matrix matrix(Kernels kernels, long address, int rows, int columns) {
    return Cublas.Matrix.of(address, rows, columns, kernels.constants().dtype());
  }

  private static TensorMap weights(Kernels kernels, Matrix matrix, int k) {
    return TensorMap.of(matrix(kernels, matrix.address(), matrix.rows(), k), COLUMNS / 2);
  }

  private static Kernel.Launch launch(
      Kernels kernels, KernelName name, int clusters, boolean overlap, Record argument) {
    return Kernels.of(kernels.cuda(), Kernels.Constants.ofLayers(kernels.constants().dtype(), 1, 1))
        .launch(
            name,
            Shape.of(clusters * CLUSTER, 1, 1, THREADS)
                .withShared(SHARED)
                .withCluster(CLUSTER)
                .withOverlap(overlap),
            argument);
  }
}
