package org.meteora.cli;

import java.util.Optional;
import java.util.concurrent.Callable;
import org.meteora.data.config.Limits;
import org.meteora.model.Llama;
import org.meteora.model.MemoryNeed;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardMode;
import org.meteora.nn.Projection;
import org.meteora.tensor.Ops;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** {@code meteora bench prefill}: a prompt's first pass. */
@Command(
    name = "prefill",
    description =
        "A prompt's first pass: the base model, and MeteoRA in each mode. Both take turns, and a"
            + " ratio is over the base model's passes of its own turns.",
    footer = {
      "",
      "Examples:",
      "  meteora bench prefill --preset 100m --tokens 512",
      "  meteora bench prefill --device cuda --preset llama3-8b --batch 4"
    })
final class BenchPrefillCommand implements Callable<Integer> {
  @Mixin private BenchModel options;

  @Option(
      names = "--batch",
      paramLabel = "N",
      defaultValue = "1",
      description = "Sequences (default: ${DEFAULT-VALUE}).")
  private int batch;

  @Option(
      names = "--tokens",
      paramLabel = "N",
      defaultValue = "512",
      description = "Tokens of each prompt (default: ${DEFAULT-VALUE}).")
  private int tokens;

  @Mixin private RouterListOption routers;

  @Override
  public Integer call() {
    Limits.atLeast(1, "--batch", batch);
    Limits.atLeast(1, "--tokens", tokens);
    var names = routers.names();
    var config = options.config();
    try (var manager = options.manager();
        var recording = Ops.notRecording()) {
      double rate = options.multiplicationRate();
      double count = (double) batch * tokens;
      double scores = 2.0 * tokens * count * config.numAttentionHeads() * config.headDim();
      double weights = BenchModel.Sizes.of(config, Projection.values()).weights();
      double flops = scores + 2 * count * weights;
      double adapters = 2 * count * options.adapterNumbers(config, options.acting());
      double floor = config.numHiddenLayers() * flops / rate;
      double gatedFloor = config.numHiddenLayers() * (flops + adapters) / rate;
      var cache = options.cache(config, batch, tokens);
      var more = options.need(config, options.adapters).and(cache);
      var base = options.model(config, manager, 0, more);
      var model = options.model(config, manager, options.adapters, MemoryNeed.NONE);
      for (var mode : options.modes(ForwardMode.MASKED, ForwardMode.ALL)) {
        var context = options.context(mode);
        var times = options.medians(() -> prefill(base, context), () -> prefill(model, context));
        options.report("base model", times[0], times[0], count, floor);
        options.report("MeteoRA, " + mode.label(), times[1], times[0], count, gatedFloor);
      }
      var auto = options.context(ForwardMode.AUTO);
      for (var name : names) {
        var router = RandomRouters.of(name, model, options.adapters);
        var routed = RandomRouters.context(router, model, batch, auto);
        var times = options.medians(() -> prefill(base, auto), () -> prefill(model, routed));
        options.report("router " + name, times[1], times[0], count, gatedFloor);
      }
      var recorded = auto.withListener(Optional.of(options.recorder()));
      var times = options.medians(() -> prefill(base, auto), () -> prefill(model, recorded));
      options.report("MeteoRA, auto, routing recorded", times[1], times[0], count, gatedFloor);
    }
    return 0;
  }

  private void prefill(Llama model, ForwardContext context) {
    BenchModel.prefill(model, batch, tokens, context);
  }
}
