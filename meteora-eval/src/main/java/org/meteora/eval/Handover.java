package org.meteora.eval;

import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;

/**
 * What is to become of answers is done by a thread of its own, in the order in which it was handed
 * over, so that whoever takes the steps waits neither for texts nor for disks. After a failure
 * nothing more is done.
 */
final class Handover implements AutoCloseable {
  private static final long OFTEN_MILLIS = 100;

  private final ScheduledExecutorService thread =
      Executors.newSingleThreadScheduledExecutor(
          Thread.ofPlatform().daemon().name("answers").factory());
  private volatile Throwable failure;

  /** Has something done, and returns at once; throws as {@link #check}. */
  void add(Runnable work) {
    check();
    thread.execute(() -> attempt(work));
  }

  /** Has something done ten times a second until the end. */
  void often(Runnable work) {
    thread.scheduleWithFixedDelay(
        () -> attempt(work), OFTEN_MILLIS, OFTEN_MILLIS, TimeUnit.MILLISECONDS);
  }

  private void attempt(Runnable work) {
    try {
      if (failure == null) {
        work.run();
      }
    } catch (RuntimeException | Error e) {
      failure = e;
    }
  }

  /** Throws what something that was handed over has failed with. */
  void check() {
    switch (failure) {
      case null -> {}
      case Error error -> throw error;
      case Throwable other -> throw (RuntimeException) other;
    }
  }

  /** Waits until all is done; throws as {@link #check}. */
  void finish() {
    close();
    check();
  }

  /** Waits until all is done. */
  @Override
  public void close() {
    thread.close();
  }
}
