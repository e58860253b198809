package org.meteora.cuda.driver;

import java.util.concurrent.TimeUnit;

/**
 * The compiler's work in a process. The process ends when there is none: the compiler's library
 * would be torn down under it.
 */
final class Compilations {
  private final long patience;
  private int running;
  private boolean ending;

  /**
   * @param patienceMillis what a process takes at most to end that nobody holds up
   */
  Compilations(long patienceMillis) {
    this.patience = TimeUnit.MILLISECONDS.toNanos(patienceMillis);
  }

  /**
   * {@link #end} must follow. While the process ends this waits; if it has not ended by then,
   * another shutdown hook waits for what the thread is at, such as a step of training, and it goes
   * on.
   *
   * @throws IllegalStateException on a daemon thread when the process ends, which does not wait for
   *     it
   */
  synchronized void begin() {
    if (ending && Thread.currentThread().isDaemon()) {
      throw new IllegalStateException("kernels are not compiled ahead: the process ends");
    }
    var since = System.nanoTime();
    for (var left = patience; ending && left > 0; left = patience - (System.nanoTime() - since)) {
      try {
        TimeUnit.NANOSECONDS.timedWait(this, left);
      } catch (InterruptedException e) {
        Thread.currentThread().interrupt();
        break;
      }
    }
    running++;
  }

  synchronized void end() {
    running--;
    notifyAll();
  }

  /** A shutdown hook: waits for those that have begun. */
  synchronized void finish() {
    ending = true;
    while (running > 0) {
      try {
        wait();
      } catch (InterruptedException e) {
        Thread.currentThread().interrupt();
        return;
      }
    }
  }
}
