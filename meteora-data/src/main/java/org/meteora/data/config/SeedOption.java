package org.meteora.data.config;

import java.util.Optional;
import picocli.CommandLine.Option;

/** What chance begins with. */
public final class SeedOption {
  /** Where none is given and none is needed. */
  private static final long DEFAULT = 42;

  @Option(
      names = "--seed",
      paramLabel = "N",
      description = "Seed of everything random (default: 42; sampling of tokens needs one given).")
  private Long seed;

  /** As it was given. */
  public Optional<Long> value() {
    return Optional.ofNullable(seed);
  }

  /** As it was given, or the default. */
  public long orDefault() {
    return value().orElse(DEFAULT);
  }
}
