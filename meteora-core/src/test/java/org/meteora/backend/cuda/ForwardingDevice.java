package org.meteora.backend.cuda;

import java.lang.foreign.MemorySegment;
import java.util.List;
import org.meteora.cuda.driver.Cublas.Matrix;
import org.meteora.cuda.kernel.SummedProducts.Sum;
import org.meteora.cuda.kernel.TrainingKernels;
import org.meteora.cuda.kernel.TrainingKernels.Dropout;

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
