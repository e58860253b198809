package org.meteora.data.config;

import picocli.CommandLine.Option;

/** In what form results are printed. */
public final class JsonOption {
  @Option(names = "--json", description = "Print JSON instead of text, one object a line.")
  private boolean json;

  public boolean isGiven() {
    return json;
  }
}
