package org.meteora.cli;

import java.util.List;
import org.meteora.router.Routers;
import picocli.CommandLine.Option;

/** {@code --router} of benchmarks. */
final class RouterListOption {
  @Option(
      names = "--router",
      paramLabel = "A,B,…",
      split = ",",
      description =
          "Measure with these routers too, beside the gates; names are those of generate's"
              + " --router.")
  private List<String> names = List.of();

  /**
   * @throws org.meteora.UserException when no router is called so
   */
  List<String> names() {
    return names.stream().map(Routers::require).toList();
  }
}
