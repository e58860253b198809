package org.meteora.cli;

import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Spec;

/** {@code meteora bench}: what MeteoRA costs over its base model, in one run on this machine. */
@Command(
    name = "bench",
    description = "Measures what MeteoRA costs over its base model, with random weights.",
    subcommands = {
      BenchCollectiveCommand.class,
      BenchDecodeCommand.class,
      BenchGenerateCommand.class,
      BenchLinearCommand.class,
      BenchPrefillCommand.class,
      BenchTrainCommand.class
    },
    footer = {
      "",
      "Examples:",
      "  meteora bench decode --preset 100m --adapters 28 --rank 8 --batch 1",
      "  meteora bench generate --preset 100m --sequences 1,8 --shared-tokens 0,160",
      "  meteora bench linear --preset llama3-8b --tokens 1 --tokens 512",
      "  meteora bench prefill --preset 100m --tokens 512",
      "  meteora bench train --preset 100m --tokens 512"
    })
final class BenchCommand implements Runnable {
  @Spec private CommandSpec spec;

  @Override
  public void run() {
    throw new CommandLine.ParameterException(
        spec.commandLine(),
        "name what to measure: collective, decode, generate, linear, prefill or train");
  }
}
