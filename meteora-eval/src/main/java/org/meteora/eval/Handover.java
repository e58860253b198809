package org.meteora.eval;

import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;

/**
 * What is to become of answers is done ten times a second by a thread of its own, in order, so that
 * whoever takes the steps waits neither for texts nor for disks. After a failure no more is done.
 */
final class Handover implements AutoCloseable {
  private final Queue<Runnable> work = new ConcurrentLinkedQueue<>();
  private final ScheduledExecutorService thread = Executors.newSingleThreadScheduledExecutor();
  private volatile Throwable failure;

  /**
   * @param last is done each time after what was handed over
   */
  Handover(Runnable last) {
    Runnable round =
        () -> {
          add(last);
          doAll();
        };
    thread.scheduleWithFixedDelay(round, 100, 100, TimeUnit.MILLISECONDS);
  }

  /** Hands over, and returns at once. */
  void add(Runnable its) {
    work.add(its);
  }

  private void doAll() {
    try {
      for (Runnable next; failure == null && (next = work.poll()) != null; ) {
        next.run();
      }
    } catch (RuntimeException | Error e) {
      failure = e;
    }
  }

  /** Throws what something has failed with. */
  void check() {
    switch (failure) {
      case Error error -> throw error;
      case RuntimeException exception -> throw exception;
      case null, default -> {}
    }
  }

  /** Returns when all is done; throws as {@link #check}. */
  void finish() {
    close();
    check();
  }

  /** Returns when all is done, or something has failed. */
  @Override
  public void close() {
    thread.close();
    doAll();
  }
}
