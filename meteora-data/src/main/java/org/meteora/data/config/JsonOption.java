package org.meteora.data.config;

import picocli.CommandLine.Option;

/** In what form results are printed. */
public final class JsonOption {
  @Option(names = "--json", description = "Print JSON instead of text.")
  private boolean json;

  /** Whether it was given. */
  public boolean isGiven() {
    return json;
  }
}
