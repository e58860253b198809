package org.meteora.data.hub;

import java.time.Duration;

/**
 * How long a download waits for what.
 *
 * @param connect for a connection to be made
 * @param stall without one byte (reply's head or body) until a connection is dropped and retried
 * @param firstPause before the first retry; doubles with every failure, times a random 0.5 to 1
 * @param longestPause that doubling ends at
 * @param longestRetryAfter that a server may ask for with {@code Retry-After}; more is an error
 * @param attempts in a row without progress until the download fails
 * @param ramp until a file's connections get one more, when they do not bring enough
 */
public record Timing(
    Duration connect,
    Duration stall,
    Duration firstPause,
    Duration longestPause,
    Duration longestRetryAfter,
    int attempts,
    Duration ramp) {

  /** What suits the public Hub over the Internet. */
  public static final Timing DEFAULT =
      new Timing(
          Duration.ofSeconds(15),
          Duration.ofSeconds(30),
          Duration.ofSeconds(1),
          Duration.ofSeconds(60),
          Duration.ofMinutes(10),
          8,
          Duration.ofMillis(250));
}
