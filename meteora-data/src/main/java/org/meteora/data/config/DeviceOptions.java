package org.meteora.data.config;

import java.util.Locale;
import java.util.Optional;
import picocli.CommandLine.Option;

/** Where a model runs, and in which numbers. */
public final class DeviceOptions {
  @Option(
      names = "--device",
      paramLabel = "DEVICE",
      description =
          "auto (a GPU if there is one, else the CPU), cpu, cuda or cuda:i (default: auto).")
  private String device;

  @Option(
      names = "--dtype",
      paramLabel = "TYPE",
      description =
          "f32, f16 or bf16; training takes f32 or bf16 (default: f32 on the CPU, bf16 on a GPU).")
  private String dtype;

  /** As it was given. */
  public Optional<String> device() {
    return Optional.ofNullable(device);
  }

  /** As it was given, in lower case. */
  public Optional<String> dtype() {
    return Optional.ofNullable(dtype).map(name -> name.toLowerCase(Locale.ROOT));
  }
}
