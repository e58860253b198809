package org.meteora.cli;

import org.meteora.UserException;
import picocli.CommandLine.Option;

/** How often a benchmark measures. */
final class RepeatOption {
  @Option(
      names = "--repeat",
      paramLabel = "N",
      defaultValue = "15",
      description = "Runs; the median counts (default: ${DEFAULT-VALUE}).")
  private int repeat;

  /**
   * As it was given, or the default.
   *
   * @throws UserException when it is below 1
   */
  int value() {
    if (repeat < 1) {
      throw new UserException("--repeat must be at least 1, not " + repeat);
    }
    return repeat;
  }
}
