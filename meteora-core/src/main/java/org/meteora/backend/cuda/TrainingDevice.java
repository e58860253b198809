package org.meteora.backend.cuda;

import ai.djl.ndarray.NDManager;
import java.lang.foreign.MemorySegment;
import java.util.List;
import org.meteora.cuda.driver.Cublas;
import org.meteora.cuda.driver.Cublas.Matrix;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.kernel.MaskedProducts;
import org.meteora.cuda.kernel.SummedProducts.Sum;
import org.meteora.cuda.kernel.TrainingKernels;
import org.meteora.cuda.kernel.TrainingKernels.Dropout;
import org.meteora.tensor.Dtype;

/** What {@link CudaTraining} queues work on; a test computes the same on a CPU. */
interface TrainingDevice {
  /** The kernels for so many adapters a token, of so many. */
  TrainingKernels kernels(int topK, int adapters);

  /** As {@link Cublas#multiply}. */
  void multiply(Matrix c, Matrix a, Matrix b, boolean add);

  /** As {@link Products#canDrop}. */
  default boolean canDrop(Sum sum) {
    return false;
  }

  /** As {@link Products#sum}. */
  default void sum(List<Sum> sums, Dropout dropout) {
    Products.oneByOne(sums, dropout, this::multiply);
  }

  /** As {@link Products#canMask}. */
  default boolean canMask(Dtype dtype, int tokens, int in, int ranks, int columns) {
    return false;
  }

  /** As {@link Products#maskedRows}, where {@link #canMask} says so. */
  default void maskedRows(MaskedProducts.Input input, Matrix stack, Matrix rows) {
    throw new UnsupportedOperationException();
  }

  /** As {@link Products#maskedGradient}, where {@link #canMask} says so. */
  default void maskedGradient(MaskedProducts.Input input, Matrix slope, long gradient) {
    throw new UnsupportedOperationException();
  }

  /**
   * From so many ranks of a linear on, z, its result, and the gradients of c and of the input are
   * multiplied adapter by adapter, of the tokens that chose it, and not over all ranks.
   */
  default int manyRanks() {
    return 1024;
  }

  /**
   * From so many adapters on for each that a token chooses, the gradients of A and B are multiplied
   * likewise: what that takes of the product over all ranks goes with how many of all are chosen,
   * whatever their rank. On an H100 it takes as much with some 60, k = 2.
   */
  default int manyAdapters() {
    return 32;
  }

  void clear(long address, long bytes);

  /** Copies to the device; {@code from} may be changed afterwards. */
  void upload(long to, MemorySegment from);

  /** Copies to the host, and waits for it. */
  void download(MemorySegment to, long from);

  void makeCurrent();

  /** Bytes that could be had, those that libtorch keeps for its next tensors included. */
  long freeBytes();

  /**
   * A GPU, on libtorch's stream.
   *
   * @param manager closes what is opened here
   */
  static TrainingDevice of(Cuda cuda, Dtype dtype, NDManager manager) {
    var stream = Stream.LIBTORCH;
    var products = new Products(cuda, manager);
    products.open();
    return new TrainingDevice() {
      @Override
      public TrainingKernels kernels(int topK, int adapters) {
        return TrainingKernels.of(cuda, dtype, topK, adapters, stream);
      }

      @Override
      public void multiply(Matrix c, Matrix a, Matrix b, boolean add) {
        products.multiply(c, a, b, add);
      }

      @Override
      public boolean canDrop(Sum sum) {
        return products.canDrop(sum);
      }

      @Override
      public void sum(List<Sum> sums, Dropout dropout) {
        products.sum(sums, dropout);
      }

      @Override
      public boolean canMask(Dtype dtype, int tokens, int in, int ranks, int columns) {
        return products.canMask(dtype, tokens, in, ranks, columns);
      }

      @Override
      public void maskedRows(MaskedProducts.Input input, Matrix stack, Matrix rows) {
        products.maskedRows(input, stack, rows);
      }

      @Override
      public void maskedGradient(MaskedProducts.Input input, Matrix slope, long gradient) {
        products.maskedGradient(input, slope, gradient);
      }

      @Override
      public int manyRanks() { // float32 has no tensor cores here
        return dtype == Dtype.F32 ? Integer.MAX_VALUE : TrainingDevice.super.manyRanks();
      }

      @Override
      public int manyAdapters() {
        return dtype == Dtype.F32 ? Integer.MAX_VALUE : TrainingDevice.super.manyAdapters();
      }

      @Override
      public void clear(long address, long bytes) {
        cuda.fill(address, 0, bytes, stream);
      }

      @Override
      public void upload(long to, MemorySegment from) {
        cuda.toDevice(to, from, from.byteSize(), stream); // pageable memory is copied at once
      }

      @Override
      public void download(MemorySegment to, long from) {
        cuda.toHost(to, from, to.byteSize(), stream);
        stream.synchronize();
      }

      @Override
      public void makeCurrent() {
        cuda.makeCurrent();
      }

      @Override
      public long freeBytes() {
        return cuda.free(Long.MAX_VALUE);
      }
    };
  }
}
