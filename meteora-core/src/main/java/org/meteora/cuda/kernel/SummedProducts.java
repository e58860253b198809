package org.meteora.cuda.kernel;

import java.util.ArrayList;
import java.util.List;
import java.util.stream.Stream;
import org.meteora.cuda.driver.CStruct.Count;
import org.meteora.cuda.driver.Cublas.Matrix;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Shape;
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
  private static final int ROWS = 128; // of a tile
  private static final int COLUMNS = 256;
  private static final int INNER = 64;
  private static final int CLUSTER = 2;
  private static final int THREADS = 384;
  private static final int STAGES = 4;
  private static final int SHARED = STAGES * (ROWS + COLUMNS) * INNER * 2 + STAGES * 16 + 1024;

  /** Fewer are multiplied by cuBLAS, which has smaller tiles for them. */
  private static final int MIN_ROWS = 1024;

  /** {@code a · b}. */
  public record Term(Matrix a, Matrix b) {}

  /**
   * One sum, which is written, or added to what is there.
   *
   * @param y as it lies in memory
   */
  public record Sum(Matrix y, boolean add, List<Term> terms) {}

  record SumOutput(long y, int ld, int columns, int terms, int tiles) {}

  record ProductSum(
      @Count(MAX_TERMS) List<TensorMap> a,
      @Count(MAX_TERMS) List<TensorMap> b,
      @Count(MAX_TERMS) int[] inner,
      int rowMajorB,
      int rows,
      int outputs,
      int pairs,
      int dropped,
      @Count(MAX_SUMS) List<SumOutput> output,
      Dropout dropout) {}

  private SummedProducts() {}

  /** Whether the kernels take these, all of the same rows, and gain by it. */
  public static boolean take(Cuda cuda, List<Sum> sums) {
    var terms = sums.stream().flatMap(sum -> sum.terms().stream()).toList();
    var matrices =
        Stream.concat(
            sums.stream().map(Sum::y), terms.stream().flatMap(t -> Stream.of(t.a(), t.b())));
    return cuda.capability() == 90
        && sums.size() <= MAX_SUMS
        && terms.size() <= MAX_TERMS
        && sums.stream().noneMatch(sum -> sum.add() || sum.terms().size() < 2)
        && sums.getFirst().y().rows() >= MIN_ROWS
        && sums.stream().allMatch(sum -> sum.y().columns() % 8 == 0)
        && terms.stream().noneMatch(term -> term.a().isTransposed())
        && matrices.allMatch(SummedProducts::isAligned);
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
   * @param dropout what the first term of each goes through, before the others are added
   */
  public static void launch(
      Kernels kernels,
      List<Sum> sums,
      Dropout dropout,
      org.meteora.cuda.driver.Stream stream) {
    var a = new ArrayList<TensorMap>();
    var b = new ArrayList<TensorMap>();
    var inner = new int[MAX_TERMS];
    var outputs = new ArrayList<SumOutput>();
    int rowMajor = 0;
    int beside = 0;
    for (var sum : sums) {
      var y = sum.y();
      for (var term : sum.terms()) {
        inner[a.size()] = y.innerOf(term.a(), term.b());
        rowMajor |= term.b().isTransposed() ? 0 : 1 << a.size();
        a.add(TensorMap.of(term.a(), ROWS));
        b.add(TensorMap.of(term.b(), term.b().isTransposed() ? COLUMNS / 2 : INNER));
      }
      int tiles = Math.ceilDiv(y.columns(), COLUMNS);
      outputs.add(
          new SumOutput(y.address(), y.stride(), y.columns(), sum.terms().size(), tiles));
      beside += tiles;
    }
    int rows = sums.getFirst().y().rows();
    int pairs = Math.ceilDiv(rows, ROWS * CLUSTER);
    boolean drops = dropout.threshold() != 0;
    int clusters = Math.min(pairs * beside, kernels.cuda().multiprocessors() / CLUSTER);
    kernels.run(
        drops ? KernelName.PRODUCT_SUM_DROPPED : KernelName.PRODUCT_SUM,
        Shape.of(clusters * CLUSTER, 1, 1, THREADS).withShared(SHARED).withCluster(CLUSTER),
        new ProductSum(
            a, b, inner, rowMajor, rows, sums.size(), pairs, drops ? 1 : 0, outputs, dropout),
        stream);
  }
}
