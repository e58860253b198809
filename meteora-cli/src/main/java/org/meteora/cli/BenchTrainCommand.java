package org.meteora.cli;

import ai.djl.ndarray.NDArray;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.stream.IntStream;
import org.meteora.UserException;
import org.meteora.llama.Llama;
import org.meteora.llama.LlamaConfig;
import org.meteora.llama.RandomLlama;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardMode;
import org.meteora.torch.Ops;
import org.meteora.train.LlamaLearner;
import org.meteora.train.batch.Batch;
import org.meteora.train.batch.TrainingSample;
import org.meteora.train.loss.LanguageModelLoss;
import org.meteora.train.optim.AdamW;
import org.meteora.train.optim.FlatParameters;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** {@code meteora bench train}: one optimiser step. */
@Command(
    name = "train",
    description =
        "One training step: the base model alone (forward, loss, and the gradient to the first"
            + " layer's input; nothing of it is trained), MeteoRA in each mode (forward, both"
            + " losses, gradients of all gates, A and B, AdamW), and AdamW by itself. The first"
            + " lines keep all activations, the last one recomputes layers, as training does unless"
            + " told otherwise.",
    footer = {"", "Example:", "  meteora bench train --preset 100m --tokens 512 --repeat 5"})
final class BenchTrainCommand implements Callable<Integer> {
  private static final List<ForwardMode> MODES =
      List.of(ForwardMode.AUTO, ForwardMode.MASKED, ForwardMode.GATHER, ForwardMode.ALL);
  private static final double GATE_LOSS_WEIGHT = 50;

  /** So small that the weights stay what they are, however many steps are measured. */
  private static final double RATE = 1e-12;

  @Mixin private BenchModel options;

  @Option(
      names = "--batch",
      defaultValue = "1",
      description = "Sequences (default: ${DEFAULT-VALUE}).")
  private int batch;

  @Option(
      names = "--tokens",
      defaultValue = "512",
      description = "Tokens of each sequence (default: ${DEFAULT-VALUE}).")
  private int tokens;

  @Option(
      names = "--dropout",
      defaultValue = "0.1",
      description = "On the adapters' input (default: ${DEFAULT-VALUE}).")
  private double dropout;

  @Override
  public Integer call() {
    var config = options.config();
    var samples = batch(config);
    try (var manager = options.manager()) {
      double base;
      try (var own = manager.newSubManager()) {
        var model = options.model(config, own, 0, options.control());
        base = options.median(() -> baseStep(model, samples));
      }
      report("base model, gradient to the input", base, base);
      try (var own = manager.newSubManager()) {
        var control = options.control();
        var model =
            RandomLlama.create(
                config, own, options.dtype(), options.adapters, options.rank, control, dropout);
        try (var parameters = new FlatParameters(own, parameters(model));
            var optimizer = new AdamW(parameters, 0)) {
          for (var mode : MODES) {
            if (mode == ForwardMode.GATHER && batch * tokens > 256) {
              continue; // A and B gathered for every token and kept: tokens · k · r · (in + out)
            }
            control.flags(Flags.of(mode));
            var learner = new LlamaLearner(model, false, options.adapters);
            report(
                "MeteoRA, " + mode.name().toLowerCase(Locale.ROOT),
                options.median(() -> step(learner, samples, parameters, optimizer)),
                base);
          }
          control.flags(Flags.AUTO);
          var recomputing = new LlamaLearner(model, true, options.adapters);
          report(
              "MeteoRA, auto, layers recomputed",
              options.median(() -> step(recomputing, samples, parameters, optimizer)),
              base);
          report(
              "AdamW alone, %,d parameters".formatted(parameters.size()),
              options.median(() -> update(parameters, optimizer)),
              base);
        }
      }
    }
    return 0;
  }

  private void report(String what, double milliseconds, double base) {
    options.report(what, milliseconds, base, (double) batch * tokens);
  }

  /** Random tokens, each sequence of another task. */
  private Batch batch(LlamaConfig config) {
    if (batch < 1 || tokens < 2) {
      throw new UserException("--batch must be at least 1 and --tokens at least 2");
    }
    return new Batch(
        IntStream.range(0, batch)
            .mapToObj(
                row ->
                    new TrainingSample(
                        "random:" + row,
                        IntStream.range(0, tokens)
                            .map(t -> (int) ((t * 7919L + row + 13) % config.vocabSize()))
                            .toArray(),
                        0,
                        row % options.adapters))
            .toList(),
        false);
  }

  private static Map<String, NDArray> parameters(Llama model) {
    var result = new LinkedHashMap<String, NDArray>();
    for (int layer = 0; layer < model.layers().size(); layer++) {
      var projections = model.layers().get(layer).projections();
      for (int module = 0; module < projections.length; module++) {
        var bank = projections[module].bank();
        var path = LlamaConfig.projectionPath(layer, module);
        result.put(path + ".moe_gate", bank.gate());
        result.put(path + ".lora_A", bank.loraA());
        result.put(path + ".lora_B", bank.loraB());
      }
    }
    return result;
  }

  private static void step(
      LlamaLearner learner, Batch samples, FlatParameters parameters, AdamW optimizer) {
    parameters.clearGradients();
    learner.learn(samples, 1.0 / samples.labelCount(), weight(samples), 1);
    parameters.collectGradients();
    update(parameters, optimizer);
  }

  private static double weight(Batch samples) {
    return GATE_LOSS_WEIGHT / samples.gateLabelCount();
  }

  private static void update(FlatParameters parameters, AdamW optimizer) {
    optimizer.step(RATE, AdamW.clipFactor(optimizer.gradientNorm(), 1));
    parameters.publish();
  }

  /** The same passes where no layer has adapters: what any training through this model costs. */
  private static void baseStep(Llama model, Batch samples) {
    try (var scope = model.manager().newSubManager();
        var recording = Ops.recording()) {
      var ids = scope.create(samples.ids(), Ops.shape(samples.rows(), samples.length()));
      var pass = model.wholePass(scope, samples.length(), true);
      var hidden = model.embed(ids);
      hidden.setRequiresGradient(true);
      var x = hidden;
      for (var layer : model.layers()) {
        x = layer.forward(x, pass);
      }
      var normed = model.norm().forward(x);
      var loss =
          LanguageModelLoss.compute(
              normed,
              model.head(),
              samples.labels(),
              1.0 / samples.labelCount(),
              true,
              LanguageModelLoss.chunkTokens(model.config().vocabSize()));
      Ops.backward(normed, loss.gradient());
      if (!(loss.sum() > 0)) {
        throw new IllegalStateException("random weights gave the loss " + loss.sum());
      }
    }
  }
}
