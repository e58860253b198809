package org.meteora.cli;

import java.util.List;
import java.util.Locale;
import java.util.concurrent.Callable;
import org.meteora.model.RandomLlama;
import org.meteora.moe.MoeLinear;
import org.meteora.moe.forward.Flags;
import org.meteora.moe.forward.ForwardMode;
import org.meteora.nn.Projection;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** {@code meteora bench linear}: single layers of a model. */
@Command(
    name = "linear",
    description = "The model's linear layers one by one: base alone, and MeteoRA in each mode.")
final class BenchLinearCommand implements Callable<Integer> {
  @Mixin private BenchModel options;

  @Option(
      names = "--tokens",
      defaultValue = "1",
      split = ",",
      description =
          "Tokens in a pass; several values are measured one after another (default:"
              + " ${DEFAULT-VALUE}).")
  private List<Integer> tokens;

  @Override
  public Integer call() {
    var config = options.config();
    double rate;
    double bandwidth;
    try (var manager = options.manager()) {
      rate = options.multiplicationRate(manager);
      bandwidth = options.readRate();
    }
    for (var module : List.of(Projection.Q, Projection.GATE, Projection.DOWN)) { // all shapes
      var shape = config.shape(module);
      for (int count : tokens) {
        try (var manager = options.manager();
            var recording = Ops.notRecording()) {
          var control = options.control();
          var weight = RandomLlama.normal(manager, options.dtype(), 1 / Math.sqrt(shape[1]), shape);
          var x = RandomLlama.normal(manager, options.dtype(), 1, count, shape[1]);
          var bank =
              RandomLlama.bank(shape, manager, options.dtype(), options.adapters, options.rank);
          var plain = new MoeLinear(weight, null, null, control, 0, 0, module.ordinal());
          var gated = new MoeLinear(weight, null, bank, control, 0, 0, module.ordinal());
          var name = shape[1] + " → " + shape[0] + ", " + count + " tokens, ";
          double size = options.dtype().bytes();
          double weights = (double) shape[0] * shape[1];
          double both = shape[0] + shape[1];
          double floor =
              floor(2 * count * weights / rate, size * (weights + count * both), bandwidth);
          double gates = (double) options.adapters * shape[1];
          double ranks = Math.min(options.topK, options.adapters) * (double) options.rank;
          double gatedFloor =
              floor(
                  2 * count * (weights + gates + ranks * both) / rate,
                  size
                      * (weights
                          + count * both
                          + gates
                          + options.touched(count) * options.rank * both),
                  bandwidth);
          double base = time(plain, x);
          options.report(name + "base", base, base, count, floor);
          for (var mode : options.modes(ForwardMode.GATHER, ForwardMode.MASKED, ForwardMode.ALL)) {
            if (mode == ForwardMode.GATHER && count > 256) {
              continue; // gathering B for every token would need count · k · r · out numbers
            }
            control.flags(Flags.of(mode));
            options.report(
                name + mode.name().toLowerCase(Locale.ROOT),
                time(gated, x),
                base,
                count,
                gatedFloor);
          }
        }
      }
    }
    return 0;
  }

  private static double floor(double arithmetic, double bytes, double bandwidth) {
    return bandwidth == 0 ? arithmetic : Math.max(arithmetic, bytes / bandwidth);
  }

  private double time(MoeLinear layer, ai.djl.ndarray.NDArray x) {
    return options.median(
        () -> {
          try (var scope = x.getManager().newSubManager()) {
            var y = layer.forward(Ops.alias(scope, x), false).y();
            Ops.cast(Ops.narrow(y, 0, 0, 1), Dtype.F32).toFloatArray(); // waits for a device
          }
        });
  }
}
