package org.meteora.data.config;

import java.util.HashMap;
import java.util.Map;
import org.meteora.moe.Flags;
import picocli.CommandLine.Option;

/**
 * The flags that choose an implementation: as options, which win, as variables of the environment,
 * and as keys of {@code config.yaml}.
 */
public final class FlagOptions {
  private final Map<String, String> given = new HashMap<>();

  @Option(
      names = "--moelinear-use-accelerate-fwd",
      paramLabel = "0|1",
      description = "0: the plain formula, routing in its training form (default: 1).")
  private void accelerate(String value) {
    given.put("MOELINEAR_USE_ACCELERATE_FWD", value);
  }

  @Option(
      names = "--moelinear-fwd-inner-loop-mode",
      paramLabel = "MODE",
      description = "batch, all, parallel or auto (default: auto).")
  private void loop(String value) {
    given.put("MOELINEAR_FWD_INNER_LOOP_MODE", value);
  }

  @Option(
      names = "--moelinear-accelerate-fwd-backend",
      paramLabel = "NAME",
      description = "torch, triton, fused or auto (default: auto).")
  private void backend(String value) {
    given.put("MOELINEAR_ACCELERATE_FWD_BACKEND", value);
  }

  @Option(
      names = "--moelinear-accelerate-fwd-backend-torch-version",
      paramLabel = "v1|v2",
      description = "v1: gather the chosen rows; v2: all ranks, masked.")
  private void torchVersion(String value) {
    given.put("MOELINEAR_ACCELERATE_FWD_BACKEND_TORCH_VERSION", value);
  }

  @Option(
      names = "--moelinear-accelerate-fwd-backend-triton-version",
      paramLabel = "v1…v4",
      description = "Accepted: there is one fused path.")
  private void tritonVersion(String value) {
    given.put("MOELINEAR_ACCELERATE_FWD_BACKEND_TRITON_VERSION", value);
  }

  @Option(
      names = "--moelinear-single-moe-lora",
      paramLabel = "INDEX",
      description = "That adapter on every token, no gate.")
  private void single(String value) {
    given.put("MOELINEAR_SINGLE_MOE_LORA", value);
  }

  /**
   * The flags in force.
   *
   * @throws org.meteora.UserException for a value that is not a choice
   */
  public Flags over(MeteoraConfig config) {
    var all = new HashMap<>(config.flags());
    all.putAll(System.getenv());
    all.putAll(given);
    return Flags.fromEnvironment(all);
  }
}
