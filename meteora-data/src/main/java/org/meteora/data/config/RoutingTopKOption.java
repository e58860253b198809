package org.meteora.data.config;

import java.util.Optional;
import org.meteora.UserException;
import org.meteora.moe.RoutingSettings;
import picocli.CommandLine.Option;

/** How many adapters act on a token. */
public final class RoutingTopKOption {
  @Option(
      names = "--routing-top-k",
      paramLabel = "K",
      description =
          "Adapters that act on a token (default: " + RoutingSettings.DEFAULT_TOP_K + ").")
  private Integer routingTopK;

  /**
   * As it was given.
   *
   * @throws UserException when it is below 1
   */
  public Optional<Integer> value() {
    Limits.atLeast(1, "--routing-top-k", routingTopK);
    return Optional.ofNullable(routingTopK);
  }
}
