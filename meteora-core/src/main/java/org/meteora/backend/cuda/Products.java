package org.meteora.backend.cuda;

import ai.djl.ndarray.NDManager;
import java.util.List;
import java.util.UUID;
import org.meteora.cuda.driver.Cublas;
import org.meteora.cuda.driver.Cublas.Matrix;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.cuda.kernel.MaskedProducts;
import org.meteora.cuda.kernel.SummedProducts;
import org.meteora.cuda.kernel.SummedProducts.Sum;
import org.meteora.cuda.kernel.TrainingKernels.Dropout;
import org.meteora.tensor.Dtype;

/**
 * Matrix products of a pass on libtorch's stream, by cuBLAS itself: a product of libtorch's, with
 * the views that it takes, keeps the host several times as long, and a short prompt waits for
 * nothing else. Sums of products of many rows are {@link SummedProducts}.
 */
final class Products {
  private final Cuda cuda;
  private final NDManager manager;
  private Cublas blas;

  /**
   * @param manager closes what is opened at first use
   */
  Products(Cuda cuda, NDManager manager) {
    this.cuda = cuda;
    this.manager = manager;
  }

  /** Opens cuBLAS, where it is not open. */
  synchronized void open() {
    if (blas == null) {
      cuda.makeCurrent();
      blas = new Cublas(cuda, Stream.LIBTORCH);
      manager.attachInternal(UUID.randomUUID().toString(), blas);
    }
  }

  /** As {@link Cublas#multiply}. */
  synchronized void multiply(Matrix c, Matrix a, Matrix b, boolean add) {
    blas.multiply(c, a, b, add);
  }

  /** Whether {@link #sum} can let the first term of such a sum through dropout. */
  boolean canDrop(Sum sum) {
    return !sum.terms().getFirst().b().isTransposed() && SummedProducts.take(cuda, List.of(sum));
  }

  /**
   * Sums of products, all of the same rows.
   *
   * @param dropout what each one's first term goes through, where {@link #canDrop} says so
   */
  synchronized void sum(List<Sum> sums, Dropout dropout) {
    if (SummedProducts.take(cuda, sums)) {
      var constants = Kernels.Constants.ofLayers(sums.getFirst().y().dtype(), 1, 1);
      SummedProducts.launch(Kernels.of(cuda, constants), sums, dropout, Stream.LIBTORCH);
    } else {
      oneByOne(sums, dropout, this::multiply);
    }
  }

  /** As {@link MaskedProducts#take}. */
  boolean canMask(Dtype dtype, int tokens, int in, int ranks, int columns) {
    return MaskedProducts.take(cuda, dtype, tokens, in, ranks, columns);
  }

  /** As {@link MaskedProducts#rows}. */
  void maskedRows(MaskedProducts.Input input, Matrix stack, Matrix rows) {
    MaskedProducts.rows(masked(input), input, stack, rows, Stream.LIBTORCH);
  }

  /** As {@link MaskedProducts#gradient}. */
  void maskedGradient(MaskedProducts.Input input, Matrix slope, long gradient) {
    MaskedProducts.gradient(masked(input), input, slope, gradient, Stream.LIBTORCH);
  }

  private Kernels masked(MaskedProducts.Input input) {
    return Kernels.of(cuda, Kernels.Constants.ofMasked(input.x().dtype()));
  }

  /** As {@link Cublas#multiply}. */
  interface Multiply {
    void multiply(Matrix c, Matrix a, Matrix b, boolean add);
  }

  /**
   * Sums by products that add to what is there.
   *
   * @throws IllegalArgumentException with dropout, which products cannot apply
   */
  static void oneByOne(List<Sum> sums, Dropout dropout, Multiply products) {
    if (dropout.threshold() != 0) {
      throw new IllegalArgumentException("dropout in sums that are multiplied one by one");
    }
    for (var sum : sums) {
      boolean add = sum.add();
      for (var term : sum.terms()) {
        products.multiply(sum.y(), term.a(), term.b(), add);
        add = true;
      }
    }
  }
}
