package org.meteora.parallel;

import java.util.concurrent.atomic.AtomicBoolean;
import java.util.function.LongConsumer;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Event;
import org.meteora.cuda.driver.Stream;

/**
 * A stream beside libtorch's, for what moves while that one computes.
 *
 * @param stream is closed with it
 */
record Aside(Cuda cuda, Stream stream) implements AutoCloseable {
  /**
   * Queues work behind what libtorch has been given so far.
   *
   * @param work is given the stream
   */
  Collective.Queued queue(LongConsumer work) {
    cuda.makeCurrent();
    try (var given = new Event()) {
      given.record(Stream.LIBTORCH);
      stream.await(given);
    }
    work.accept(stream.handle());
    var done = new Event();
    done.record(stream);
    var awaited = new AtomicBoolean();
    return () -> {
      if (awaited.compareAndSet(false, true)) {
        Stream.LIBTORCH.await(done);
        done.close();
      }
    };
  }

  @Override
  public void close() {
    cuda.makeCurrent();
    stream.synchronize();
    stream.close();
  }
}
