package org.meteora.train.command;

import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.function.BooleanSupplier;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Turns Ctrl-C and SIGTERM into a request: training finishes its step and writes a checkpoint
 * before the process ends.
 */
final class StopSignal implements BooleanSupplier, AutoCloseable {
  private static final Logger LOG = LoggerFactory.getLogger(StopSignal.class);
  private static final long PATIENCE_MINUTES = 10;

  private final CountDownLatch finished = new CountDownLatch(1);
  private final Thread hook = new Thread(this::request, "stop-training");
  private volatile boolean requested;

  private volatile boolean listening;

  /** From now on signals are requests. */
  void listen() {
    Runtime.getRuntime().addShutdownHook(hook);
    listening = true;
  }

  private void request() {
    requested = true;
    LOG.info("stopping: a step that has begun is ended, with a checkpoint");
    try {
      finished.await(PATIENCE_MINUTES, TimeUnit.MINUTES);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
  }

  @Override
  public boolean getAsBoolean() {
    return requested;
  }

  /**
   * What a command returns whose work is done, or was stopped: 0, or 130, as shells say of what was
   * interrupted, so that whoever called it does not go on.
   */
  int exitCode() {
    return requested ? 130 : 0;
  }

  @Override
  public void close() {
    finished.countDown();
    if (listening && !requested) {
      Runtime.getRuntime().removeShutdownHook(hook);
    }
  }
}
