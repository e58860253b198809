package org.meteora.cuda.driver;

import java.lang.foreign.Arena;
import java.lang.foreign.ValueLayout;

/** A mark in a stream, to wait for and for timing. */
public final class Event implements AutoCloseable {
  private final long handle = CudaDriver.pointer("creating an event", CudaDriver.EVENT_CREATE, 0);

  long handle() {
    return handle;
  }

  public void record(Stream stream) {
    CudaDriver.call("recording an event", CudaDriver.EVENT_RECORD, handle, stream.handle());
  }

  /** Waits until the stream has come to where it was recorded. */
  public void await() {
    CudaDriver.call("waiting for an event", CudaDriver.EVENT_SYNCHRONIZE, handle);
  }

  /** Milliseconds of device time since {@code earlier}; waits for this event. */
  public double millisSince(Event earlier) {
    await();
    try (var arena = Arena.ofConfined()) {
      var out = arena.allocate(ValueLayout.JAVA_FLOAT);
      CudaDriver.call("timing", CudaDriver.EVENT_ELAPSED, out.address(), earlier.handle, handle);
      return out.get(ValueLayout.JAVA_FLOAT, 0);
    }
  }

  @Override
  public void close() {
    CudaDriver.call("dropping an event", CudaDriver.EVENT_DESTROY, handle);
  }
}
