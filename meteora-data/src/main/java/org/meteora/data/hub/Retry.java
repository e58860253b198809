package org.meteora.data.hub;

import java.io.IOException;
import java.time.Duration;
import java.time.Instant;
import java.util.concurrent.ThreadLocalRandom;
import org.meteora.UserException;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** Decides, failure after failure, whether to try again and after how long; one thread's own. */
final class Retry {
  private static final Logger LOG = LoggerFactory.getLogger(Retry.class);

  /** The failure in a row that is logged: one alone is common, and soon over. */
  private static final int LOGGED_FAILURE = 2;

  private final Timing timing;
  private final String what;
  private int failures;

  Retry(Timing timing, String what) {
    this.timing = timing;
    this.what = what;
  }

  /** Something arrived: the count starts again. */
  void progressed() {
    failures = 0;
  }

  /**
   * Waits until the next attempt.
   *
   * @throws UserException when there is to be none
   */
  void pause(IOException failure) throws InterruptedException {
    if (++failures >= timing.attempts()) {
      throw new UserException(
          "%s: given up after %s attempts without progress: %s; run the same command"
              + " again to go on",
          what, failures, reason(failure), failure);
    }
    long longest =
        Math.min(
            timing.longestPause().toMillis(),
            timing.firstPause().toMillis() << Math.min(20, failures - 1));
    long pause = (long) (longest * (0.5 + 0.5 * ThreadLocalRandom.current().nextDouble()));
    if (failure instanceof StatusException status) {
      var asked = status.retryAfter(Instant.now()).orElse(Duration.ZERO);
      if (asked.compareTo(timing.longestRetryAfter()) > 0) {
        throw new UserException(
            "%s: %s and asks to wait %s s; run the same command again after that",
            what, reason(failure), asked.toSeconds(), failure);
      }
      // everybody told the same second must not come back in the same one
      pause = asked.isZero() ? pause : asked.toMillis() + pause / 2;
    }
    if (failures == LOGGED_FAILURE) {
      int left = timing.attempts() - failures;
      LOG.info("{}: {}; tried up to {} times more", what, reason(failure), left);
    } else {
      LOG.debug("{}: {}; again in {} ms", what, reason(failure), pause);
    }
    Thread.sleep(pause);
  }

  static String reason(Throwable failure) {
    var message = failure.getMessage();
    return message == null || message.isBlank()
        ? failure.getClass().getSimpleName()
        : message.replaceAll("\\s*\\R\\s*", " ");
  }
}
