package org.meteora.data.config;

import java.util.HashMap;
import java.util.Locale;
import java.util.Optional;
import org.meteora.moe.Flags;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/**
 * The flags that choose an implementation: as options, which win, as variables of the environment,
 * and as keys of {@code config.yaml}. Each option is read by its name.
 */
public final class FlagOptions {
  @Spec(Spec.Target.SELF)
  private CommandSpec own;

  @Option(
      names = "--moelinear-use-accelerate-fwd",
      paramLabel = "0|1",
      description = "0: the plain formula, routing in its training form (default: 1).")
  private String accelerate;

  @Option(
      names = "--moelinear-fwd-inner-loop-mode",
      paramLabel = "MODE",
      description = "batch, all, parallel or auto (default: auto).")
  private String loop;

  @Option(
      names = "--moelinear-accelerate-fwd-backend",
      paramLabel = "NAME",
      description = "torch, triton, fused or auto (default: auto).")
  private String backend;

  @Option(
      names = "--moelinear-accelerate-fwd-backend-torch-version",
      paramLabel = "v1|v2",
      description = "v1: gather the chosen rows; v2: all ranks, masked.")
  private String torchVersion;

  @Option(
      names = "--moelinear-accelerate-fwd-backend-triton-version",
      paramLabel = "v1…v4",
      description = "Accepted: there is one fused path.")
  private String tritonVersion;

  @Option(
      names = "--moelinear-single-moe-lora",
      paramLabel = "INDEX",
      description = "That adapter on every token, no gate.")
  private String single;

  /**
   * The flags in force.
   *
   * @throws org.meteora.UserException for a value that is not a choice
   */
  public Flags over(MeteoraConfig config) {
    var all = new HashMap<>(config.flags());
    all.putAll(System.getenv());
    for (var option : own.options()) {
      // --moelinear-x is MOELINEAR_X
      var variable = option.longestName().substring(2).replace('-', '_').toUpperCase(Locale.ROOT);
      Optional.ofNullable(option.<String>getValue()).ifPresent(value -> all.put(variable, value));
    }
    return Flags.fromEnvironment(all);
  }
}
