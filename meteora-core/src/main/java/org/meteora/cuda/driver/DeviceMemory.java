package org.meteora.cuda.driver;

/**
 * A piece of device memory, owned by whoever holds this; {@link #close} frees it, after everything
 * that uses it has ended.
 */
public final class DeviceMemory implements AutoCloseable {
  private final long address;
  private final long bytes;
  private boolean closed;

  DeviceMemory(long address, long bytes) {
    this.address = address;
    this.bytes = bytes;
  }

  public long address() {
    return address;
  }

  public long bytes() {
    return bytes;
  }

  @Override
  public void close() {
    if (!closed) {
      closed = true;
      CudaDriver.call("freeing memory", CudaDriver.FREE, address);
    }
  }
}
