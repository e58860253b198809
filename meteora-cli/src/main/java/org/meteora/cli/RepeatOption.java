package org.meteora.cli;

import org.meteora.UserException;
import org.meteora.data.config.Limits;
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
    Limits.atLeast(1, "--repeat", repeat);
    return repeat;
  }
}
