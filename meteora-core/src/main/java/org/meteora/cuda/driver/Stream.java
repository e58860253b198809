package org.meteora.cuda.driver;

import org.meteora.foreign.Functions;

/** A queue of device work: one of its own, or libtorch's. */
public final class Stream implements AutoCloseable {
  private static final int NON_BLOCKING = 1;

  /** The default stream, which libtorch works on. */
  public static final Stream LIBTORCH = new Stream(0);

  private final long handle;

  private Stream(long handle) {
    this.handle = handle;
  }

  /** A new stream that does not wait for the default one. */
  public static Stream create(Cuda cuda) {
    cuda.makeCurrent();
    return new Stream(
        CudaDriver.pointer("creating a stream", CudaDriver.STREAM_CREATE, NON_BLOCKING));
  }

  /**
   * As {@link #create}, and what it is given goes before what waits on others: for little work that
   * another device waits for.
   */
  public static Stream createUrgent(Cuda cuda) {
    cuda.makeCurrent();
    int highest = -5; // the driver takes the highest it has
    return new Stream(
        CudaDriver.pointer(
            "creating a stream", CudaDriver.STREAM_CREATE_WITH_PRIORITY, NON_BLOCKING, highest));
  }

  public long handle() {
    return handle;
  }

  /** Waits until all that was queued has ended. */
  public void synchronize() {
    CudaDriver.check(
        "waiting for the GPU", () -> (int) CudaDriver.STREAM_SYNCHRONIZE.invokeExact(handle));
  }

  /** Lets what is queued from now on wait for {@code event} as it was recorded last. */
  public void await(Event event) {
    CudaDriver.call("waiting for an event", CudaDriver.STREAM_WAIT, handle, event.handle(), 0);
  }

  /** Records what {@code work} queues on this stream, without running it, as a graph. */
  public Graph capture(Runnable work) {
    CudaDriver.call("beginning a capture", CudaDriver.BEGIN_CAPTURE, handle, 2);
    try {
      work.run();
    } catch (RuntimeException e) {
      try {
        CudaDriver.call("dropping a graph", CudaDriver.GRAPH_DESTROY, endCapture());
      } catch (RuntimeException other) {
        e.addSuppressed(other);
      }
      throw e;
    }
    return new Graph(endCapture());
  }

  private long endCapture() {
    var end = CudaDriver.END_CAPTURE;
    return Functions.written(
        out -> CudaDriver.call("ending a capture", end, handle, out.address()));
  }

  @Override
  public void close() {
    if (this != LIBTORCH) {
      CudaDriver.call("closing a stream", CudaDriver.STREAM_DESTROY, handle);
    }
  }
}
