package org.meteora.eval.command;

import org.meteora.UserException;
import picocli.CommandLine.Option;

/** How long an answer may be. */
public final class MaxNewTokensOption {
  @Option(
      names = "--max-new-tokens",
      paramLabel = "N",
      defaultValue = "512",
      description = "Tokens of an answer at most (default: ${DEFAULT-VALUE}).")
  private int maxNewTokens;

  /**
   * As it was given, or the default.
   *
   * @throws UserException when it is below 1
   */
  public int value() {
    if (maxNewTokens < 1) {
      throw new UserException("--max-new-tokens must be at least 1, not " + maxNewTokens);
    }
    return maxNewTokens;
  }
}
