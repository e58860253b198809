package org.meteora.cuda.kernel;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import org.meteora.cuda.driver.CStruct.Count;
import org.meteora.cuda.driver.Cublas.Matrix;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.DeviceMemory;
import org.meteora.cuda.driver.Shape;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.driver.TensorMap;
import org.meteora.cuda.kernel.TrainingKernels.Dropout;
import org.meteora.tensor.Dtype;

/**
 * Sums of products {@code y = a0 · b0 + a1 · b1 + …} of many rows by one launch, in float32 until
 * they are rounded: {@code y = c Bᵀ + x Wᵀ} of up to three linears with one input, or the gradient
 * of that input. By cuBLAS each product would go through y once more.
 *
 * <p>For f16 and bf16, compute capability 9.0, 16-byte aligned rows.
 */
public final class SummedProducts {
  private static final int MAX_TERMS = 6; // of all sums
  private static final int MAX_SUMS = 3;
  static final int ROWS = 256; // of the tiles of two blocks
  static final int COLUMNS = 256;
  static final int INNER = 64;
  static final int CLUSTER = 2;
  static final int THREADS = 384;

  /** Four stages, pieces of results, barriers; dropout's bits are in a stage's place. */
  static final int SHARED = 4 * (ROWS / CLUSTER + COLUMNS) * INNER * 2 + (33 << 10) + 128;

  /**
   * {@code a · b}.
   *
   * @param a {@code (rows, inner)}, as it lies in memory
   * @param b {@code (inner, columns)}, as it lies in memory or its transpose
   */
  public record Term(Matrix a, Matrix b) {}

  /**
   * One sum, which is written, or added to what is there.
   *
   * @param y {@code (rows, columns)}, as it lies in memory, apart from a and b
   */
  public record Sum(Matrix y, boolean add, List<Term> terms) {}

  record SumOutput(TensorMap y, int columns, int terms, int tiles) {}

  record ProductSum(
      @Count(MAX_TERMS) List<TensorMap> a,
      @Count(MAX_TERMS) List<TensorMap> b,
      @Count(MAX_SUMS) List<SumOutput> output,
      @Count(MAX_TERMS) int[] inner,
      int rowMajorB,
      int outputs,
      int pairs,
      Dropout dropout,
      int split,
      int chunks,
      long parts,
      long ready) {}

  /** How long 64 of the inner dimension of a tile take, whether all of it is wanted or not. */
  private static final double CHUNK_MICROS = 0.8;

  private static final int LEAST_CHUNKS = 8; // of a cluster's share of split tiles

  /**
   * Tiles that are dealt out over clusters, and how long that takes by reckoning, in microseconds
   * of an H100.
   *
   * @param chunks of 64 of the inner dimension, of the longest
   */
  record Tiles(int count, int chunks, int clusters) {
    static Tiles of(Cuda cuda, List<Sum> sums) {
      int most = 0;
      for (var sum : sums) {
        int chunks = 0;
        for (var term : sum.terms()) {
          chunks += Math.ceilDiv(sum.y().innerOf(term.a(), term.b()), INNER);
        }
        most = Math.max(most, chunks);
      }
      int pairs = Math.ceilDiv(sums.getFirst().y().rows(), ROWS);
      return new Tiles(pairs * beside(sums), most, clusters(cuda));
    }

    static int clusters(Cuda cuda) {
      return cuda.multiprocessors() / CLUSTER;
    }

    /** Clusters that are launched for them when so many are split. */
    int launched(int split) {
      return split > 0 ? clusters : Math.min(count, clusters);
    }

    private static int beside(List<Sum> sums) {
      return sums.stream().mapToInt(sum -> Math.ceilDiv(sum.y().columns(), COLUMNS)).sum();
    }

    /** Those of the last round, where it is quicker to split them than to leave clusters idle. */
    int split() {
      int last = count % clusters;
      boolean splits =
          last * chunks >= LEAST_CHUNKS * clusters
              && CHUNK_MICROS * chunks * (clusters - last) / clusters > splitMicros(last);
      return splits ? last : 0;
    }

    /** Writing parts of sums, and adding as many as a tile may consist of. */
    private double splitMicros(int last) {
      return 10 + 2 * Math.ceilDiv(clusters, last);
    }

    double micros() {
      int split = split();
      return split > 0
          ? CHUNK_MICROS * chunks * count / clusters + splitMicros(split)
          : CHUNK_MICROS * chunks * Math.ceilDiv(count, clusters);
    }
  }

  private record Place(int device, long stream) {}

  /** For parts of sums, each stream's; like the kernels they are kept. */
  private static final Map<Place, DeviceMemory> PARTS = new ConcurrentHashMap<>();

  private SummedProducts() {}

  /** Whether the kernels take these, all of the same rows, and gain by it. */
  public static boolean take(Cuda cuda, List<Sum> sums) {
    int terms = 0;
    for (var sum : sums) {
      terms += sum.terms().size();
      if (sum.add() || sum.terms().size() < 2 || !isAligned(sum.y())) {
        return false;
      }
      for (var term : sum.terms()) {
        if (term.a().isTransposed() || !isAligned(term.a()) || !isAligned(term.b())) {
          return false;
        }
      }
    }
    return cuda.capability() == 90
        && sums.size() <= MAX_SUMS
        && terms <= MAX_TERMS
        && isQuicker(cuda, sums);
  }

  /**
   * Whether one launch is quicker than cuBLAS product by product, by reckoning, in microseconds of
   * an H100: cuBLAS, which has smaller tiles, takes 6 for a product and the arithmetic at 650
   * TFLOP/s.
   */
  private static boolean isQuicker(Cuda cuda, List<Sum> sums) {
    double alone = 0;
    for (var sum : sums) {
      var y = sum.y();
      for (var term : sum.terms()) {
        alone += 6 + 2.0 * y.rows() * y.columns() * y.innerOf(term.a(), term.b()) / 650e6;
      }
    }
    return Tiles.of(cuda, sums).micros() < alone;
  }

  private static boolean isAligned(Matrix matrix) {
    return matrix.dtype() != Dtype.F32
        && matrix.address() % 16 == 0
        && matrix.stride() % 8 == 0
        && matrix.rows() > 0
        && matrix.columns() > 0;
  }

  /**
   * Queues them.
   *
   * @param kernels for the matrices' dtype and one adapter a token
   * @param sums that {@link #take} takes
   * @param dropout what the first term of each goes through, before the others are added; its b
   *     then as it lies in memory
   */
  public static void launch(Kernels kernels, List<Sum> sums, Dropout dropout, Stream stream) {
    launch(kernels, sums, dropout, Tiles.of(kernels.cuda(), sums).split(), stream);
  }

  /**
   * The same.
   *
   * @param split how many tiles are split, the last ones: {@link Tiles#split}, or 0
   */
  static void launch(Kernels kernels, List<Sum> sums, Dropout dropout, int split, Stream stream) {
    var a = new ArrayList<TensorMap>();
    var b = new ArrayList<TensorMap>();
    var inner = new int[MAX_TERMS];
    var outputs = new ArrayList<SumOutput>();
    int rowMajor = 0;
    for (var sum : sums) {
      var y = sum.y();
      for (var term : sum.terms()) {
        inner[a.size()] = y.innerOf(term.a(), term.b());
        rowMajor |= term.b().isTransposed() ? 0 : 1 << a.size();
        a.add(TensorMap.of(term.a(), ROWS / CLUSTER));
        b.add(TensorMap.of(term.b(), term.b().isTransposed() ? COLUMNS / 2 : INNER));
      }
      int tiles = Math.ceilDiv(y.columns(), COLUMNS);
      outputs.add(new SumOutput(TensorMap.of(y, 64), y.columns(), sum.terms().size(), tiles));
    }
    var tiles = Tiles.of(kernels.cuda(), sums);
    int pairs = Math.ceilDiv(sums.getFirst().y().rows(), ROWS);
    kernels.run(
        dropout.threshold() == 0 ? KernelName.PRODUCT_SUM : KernelName.PRODUCT_SUM_DROPPED,
        Shape.of(tiles.launched(split) * CLUSTER, 1, 1, THREADS)
            .withShared(SHARED)
            .withCluster(CLUSTER),
        product(
            kernels.cuda(), a, b, outputs, inner, rowMajor, pairs, dropout, tiles, split, stream),
        stream);
  }

  /** A launch's parameter, with memory for parts of tiles that are split. */
  static ProductSum product(
      Cuda cuda,
      List<TensorMap> a,
      List<TensorMap> b,
      List<SumOutput> outputs,
      int[] inner,
      int rowMajorB,
      int pairs,
      Dropout dropout,
      Tiles tiles,
      int split,
      Stream stream) {
    int clusters = tiles.launched(split);
    long parts = split > 0 ? parts(cuda, clusters, stream) : 0;
    return new ProductSum(
        a,
        b,
        outputs,
        inner,
        rowMajorB,
        outputs.size(),
        pairs,
        dropout,
        split,
        tiles.chunks(),
        parts,
        parts + partBytes(clusters));
  }

  /** A tile in float32 for each cluster, which leaves a part of one at most. */
  private static long partBytes(int clusters) {
    return 4L * clusters * ROWS * COLUMNS;
  }

  /** Where they are, and behind them what of them is there: nothing, which a launch leaves so. */
  private static long parts(Cuda cuda, int clusters, Stream stream) {
    long ready = 4L * clusters * ROWS / 64; // a word for each warpgroup
    return PARTS
        .computeIfAbsent(
            new Place(cuda.index(), stream.handle()),
            place -> cuda.allocateZeroed(partBytes(clusters) + ready, stream))
        .address();
  }
}
