package org.meteora.backend.cuda;

import java.lang.foreign.MemorySegment;
import java.util.List;
import org.meteora.cuda.driver.Cublas.Matrix;
import org.meteora.cuda.kernel.MaskedProducts;
import org.meteora.cuda.kernel.SummedProducts.Sum;
import org.meteora.cuda.kernel.TrainingKernels;
import org.meteora.cuda.kernel.TrainingKernels.Dropout;
import org.meteora.tensor.Dtype;

/** Does all as another device; a test changes what it wants otherwise. */
class ForwardingDevice implements TrainingDevice {
  private final TrainingDevice device;

  ForwardingDevice(TrainingDevice device) {
    this.device = device;
  }

  @Override
  public TrainingKernels kernels(int topK, int adapters) {
    return device.kernels(topK, adapters);
  }

  @Override
  public void multiply(Matrix c, Matrix a, Matrix b, boolean add) {
    device.multiply(c, a, b, add);
  }

  @Override
  public boolean canDrop(Sum sum) {
    return device.canDrop(sum);
  }

  @Override
  public void sum(List<Sum> sums, Dropout dropout) {
    device.sum(sums, dropout);
  }

  @Override
  public boolean canMask(Dtype dtype, int tokens, int in, int ranks, int columns) {
    return device.canMask(dtype, tokens, in, ranks, columns);
  }

  @Override
  public void maskedRows(MaskedProducts.Input input, Matrix stack, Matrix rows) {
    device.maskedRows(input, stack, rows);
  }

  @Override
  public void maskedGradient(MaskedProducts.Input input, Matrix slope, long gradient) {
    device.maskedGradient(input, slope, gradient);
  }

  @Override
  public int manyRanks() {
    return device.manyRanks();
  }

  @Override
  public int manyAdapters() {
    return device.manyAdapters();
  }

  @Override
  public void clear(long address, long bytes) {
    device.clear(address, bytes);
  }

  @Override
  public void upload(long to, MemorySegment from) {
    device.upload(to, from);
  }

  @Override
  public void download(MemorySegment to, long from) {
    device.download(to, from);
  }

  @Override
  public void makeCurrent() {
    device.makeCurrent();
  }

  @Override
  public long freeBytes() {
    return device.freeBytes();
  }
}
