package org.meteora.cli;

import ai.djl.ndarray.NDManager;
import java.util.Arrays;
import java.util.Locale;
import java.util.concurrent.Callable;
import org.meteora.llama.Llama;
import org.meteora.moe.Flags;
import org.meteora.torch.Ops;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** {@code meteora bench decode}: one step of generation. */
@Command(
    name = "decode",
    description =
        "One decode step: bare matmuls (all base linears and the head), the base model, and MeteoRA"
            + " in each mode.")
final class BenchDecodeCommand implements Callable<Integer> {
  @Mixin private BenchModel options;

  @Option(
      names = "--batch",
      defaultValue = "1",
      description = "Sequences (default: ${DEFAULT-VALUE}).")
  private int batch;

  @Option(
      names = "--context",
      defaultValue = "512",
      description = "Tokens before the step (default: ${DEFAULT-VALUE}).")
  private int context;

  @Override
  public Integer call() {
    var config = options.config();
    try (var manager = options.manager();
        var recording = Ops.notRecording()) {
      double bare;
      try (var own = manager.newSubManager()) {
        var base = options.model(config, own, 0, options.control());
        bare = options.median(() -> matmuls(base));
        options.report("bare matmuls", bare, bare, batch);
        options.report("base model", step(base), bare, batch);
      }
      try (var own = manager.newSubManager()) {
        var control = options.control();
        var model = options.model(config, own, options.adapters, control);
        for (var mode : BenchModel.MODES) {
          control.flags(Flags.of(mode));
          options.report(
              "MeteoRA, " + mode.name().toLowerCase(Locale.ROOT), step(model), bare, batch);
        }
      }
    }
    return 0;
  }

  private void matmuls(Llama model) {
    try (var scope = model.manager().newSubManager()) {
      var config = model.config();
      float last = 0;
      var inputs =
          new ai.djl.ndarray.NDArray[] {
            input(scope, model, config.hiddenSize()),
            input(scope, model, (long) config.numAttentionHeads() * config.headDim()),
            input(scope, model, config.intermediateSize())
          };
      for (var layer : model.layers()) {
        var projections = layer.projections();
        for (int module = 0; module < 7; module++) {
          var x = inputs[module == 6 ? 2 : module == 3 ? 1 : 0];
          Ops.linear(x, projections[module].weight(), null).close();
        }
      }
      var logits = Ops.cast(Ops.linear(inputs[0], model.head(), null), org.meteora.torch.Dtype.F32);
      last += logits.toFloatArray()[0];
      if (Float.isNaN(last)) {
        throw new IllegalStateException("random weights gave NaN");
      }
    }
  }

  private ai.djl.ndarray.NDArray input(NDManager scope, Llama model, long size) {
    return org.meteora.llama.RandomLlama.normal(scope, model.dtype(), 1, batch, size);
  }

  private double step(Llama model) {
    try (var manager = model.manager().newSubManager();
        var cache = model.newCache(manager, new int[batch], context + 4 * options.repeat)) {
      var ids = new long[batch * context];
      Arrays.setAll(ids, i -> (i * 7919L + 13) % model.config().vocabSize());
      try (var scope = manager.newSubManager()) {
        model.next(scope.create(ids, Ops.shape(batch, context)), cache);
      }
      return options.median(
          () -> {
            try (var scope = manager.newSubManager()) {
              model
                  .next(scope.create(Arrays.copyOf(ids, batch), Ops.shape(batch, 1)), cache)
                  .toFloatArray();
            }
          });
    }
  }
}
