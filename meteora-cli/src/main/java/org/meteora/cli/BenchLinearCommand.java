package org.meteora.cli;

import ai.djl.ndarray.NDArray;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.Callable;
import org.meteora.backend.Backends;
import org.meteora.data.config.Limits;
import org.meteora.model.RandomLlama;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardMode;
import org.meteora.moe.GatedLinear;
import org.meteora.nn.Projection;
import org.meteora.tensor.Ops;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** {@code meteora bench linear}: single layers of a model. */
@Command(
    name = "linear",
    description = "The model's linear layers one by one: base alone, and MeteoRA in each mode.",
    footer = {
      "",
      "Examples:",
      "  meteora bench linear --preset 100m --tokens 1,64",
      "  meteora bench linear --device cuda --preset llama3-8b --tokens 1,2048"
    })
final class BenchLinearCommand implements Callable<Integer> {
  @Mixin private BenchModel options;

  @Option(
      names = "--tokens",
      paramLabel = "N,N,…",
      defaultValue = "1",
      split = ",",
      description =
          "Tokens in a pass; several values are measured one after another (default:"
              + " ${DEFAULT-VALUE}).")
  private List<Integer> tokens;

  @Override
  public Integer call() {
    Limits.atLeast(1, "--tokens", Collections.min(tokens));
    var config = options.config();
    double rate = options.multiplicationRate();
    double bandwidth = options.readRate();
    for (var module : List.of(Projection.Q, Projection.GATE, Projection.DOWN)) { // all shapes
      var shape = config.shape(module);
      for (int count : tokens) {
        try (var manager = options.manager();
            var recording = Ops.notRecording()) {
          var backend = Backends.of(manager, options.dtype());
          var weight = RandomLlama.normal(manager, options.dtype(), 1 / Math.sqrt(shape[1]), shape);
          var x = RandomLlama.normal(manager, options.dtype(), 1, count, shape[1]);
          var bank =
              backend.forInference(
                  RandomLlama.bank(
                      shape, manager, options.dtype(), options.adapters, options.rank));
          var plain = new GatedLinear(weight, null, null, 0, backend, 0, module);
          var gated = new GatedLinear(weight, null, bank, 0, backend, 0, module);
          var name = shape[1] + " → " + shape[0] + ", " + count + " tokens, ";
          double size = options.dtype().bytes();
          double weights = (double) shape[0] * shape[1];
          double both = shape[0] + shape[1];
          double read = weights + count * both;
          double floor = floor(2 * count * weights / rate, size * read, bandwidth);
          double gates = (double) options.adapters * shape[1];
          double acting = gates + options.acting() * (double) options.rank * both;
          double touched = gates + options.touched(count) * options.rank * both;
          double gatedFloor =
              floor(2 * count * (weights + acting) / rate, size * (read + touched), bandwidth);
          double base = time(plain, x, options.context(ForwardMode.AUTO));
          options.report(name + "base", base, base, count, floor);
          for (var mode : options.modes(ForwardMode.GATHER, ForwardMode.MASKED, ForwardMode.ALL)) {
            if (mode == ForwardMode.GATHER && count > 256) {
              continue; // gathering B for every token would need count · k · r · out numbers
            }
            double ms = time(gated, x, options.context(mode));
            options.report(name + mode.label(), ms, base, count, gatedFloor);
          }
        }
      }
    }
    return 0;
  }

  private static double floor(double arithmetic, double bytes, double bandwidth) {
    return bandwidth == 0 ? arithmetic : Math.max(arithmetic, bytes / bandwidth);
  }

  private double time(GatedLinear layer, NDArray x, ForwardContext context) {
    var withLogits = context.withGateLogits(true);
    return options.median(
        () -> {
          try (var scope = x.getManager().newSubManager()) {
            BenchModel.await(layer.forward(Ops.alias(scope, x), withLogits).y());
          }
        });
  }
}
