package org.meteora.eval.command;

import java.util.Optional;
import org.meteora.UserException;
import org.meteora.data.config.Limits;
import picocli.CommandLine.Option;

/** How long an answer may be. */
public final class MaxNewTokensOption {
  private static final int DEFAULT = 512;

  @Option(
      names = "--max-new-tokens",
      paramLabel = "N",
      description = "Tokens of an answer at most (default: 512; eval: what --max-length leaves).")
  private Integer maxNewTokens;

  /**
   * As it was given.
   *
   * @throws UserException when it is below 1
   */
  public Optional<Integer> value() {
    Limits.atLeast(1, "--max-new-tokens", maxNewTokens);
    return Optional.ofNullable(maxNewTokens);
  }

  /** As it was given, or the default. */
  public int orDefault() {
    return value().orElse(DEFAULT);
  }
}
