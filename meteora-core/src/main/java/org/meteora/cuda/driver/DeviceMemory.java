package org.meteora.cuda.driver;

/**
 * A piece of device memory, owned by whoever holds this; {@link #close} frees it, after everything
 * that uses it has ended.
 */
public final class DeviceMemory implements AutoCloseable {
  private final long address;
  private boolean closed;

  DeviceMemory(long address) {
    this.address = address;
  }

  public long address() {
    return address;
  }

  @Override
  public void close() {
    if (!closed) {
      closed = true;
      CudaDriver.call("freeing memory", CudaDriver.FREE, address);
    }
  }
}
