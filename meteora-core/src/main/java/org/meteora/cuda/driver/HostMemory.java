package org.meteora.cuda.driver;

import java.lang.foreign.MemorySegment;

/**
 * Page-locked host memory, which the GPU copies to and from while the host goes on; {@link #close}
 * frees it.
 */
public final class HostMemory implements AutoCloseable {
  private final MemorySegment memory;
  private boolean closed;

  public HostMemory(Cuda cuda, long bytes) {
    cuda.makeCurrent();
    var what = "locking " + bytes + " bytes of host memory";
    long address = CudaDriver.pointer(what, CudaDriver.HOST_ALLOCATE, bytes, 0);
    memory = MemorySegment.ofAddress(address).reinterpret(bytes);
  }

  /** The memory, valid until {@link #close}. */
  public MemorySegment memory() {
    return memory;
  }

  @Override
  public void close() {
    if (!closed) {
      closed = true;
      CudaDriver.call("freeing host memory", CudaDriver.HOST_FREE, memory.address());
    }
  }
}
