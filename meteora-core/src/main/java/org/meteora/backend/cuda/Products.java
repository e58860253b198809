package org.meteora.backend.cuda;

import ai.djl.ndarray.NDManager;
import java.util.UUID;
import org.meteora.cuda.driver.Cublas;
import org.meteora.cuda.driver.Cublas.Matrix;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Stream;

/**
 * Matrix products of an inference pass on libtorch's stream, by cuBLAS itself: a product of
 * libtorch's, with the views that it takes, keeps the host several times as long, and a short
 * prompt waits for nothing else.
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
}
