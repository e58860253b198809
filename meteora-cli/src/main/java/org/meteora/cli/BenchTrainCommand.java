package org.meteora.cli;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.stream.IntStream;
import org.meteora.UserException;
import org.meteora.backend.Backends;
import org.meteora.checkpoint.TrainableModel;
import org.meteora.data.config.Limits;
import org.meteora.data.config.ProcessOptions;
import org.meteora.data.config.ShardBaseOption;
import org.meteora.model.Architecture;
import org.meteora.model.Llama;
import org.meteora.model.LlamaTraining;
import org.meteora.model.LlamaTraining.Part;
import org.meteora.model.LlamaTraining.Recompute;
import org.meteora.model.MemoryNeed;
import org.meteora.model.Pass;
import org.meteora.moe.ForwardMode;
import org.meteora.tensor.Ops;
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
            + " lines keep all activations, the last one recomputes layers. Steps of the base model"
            + " and of each mode take turns; a ratio is the median of each turn's, in wall time and"
            + " in time of the processors, threads that wait for others included. The base model is"
            + " recorded by libtorch. On a GPU: MeteoRA's whole step, with every layer recomputed"
            + " and with as many as must be, part by part beside what each part needs at least, and"
            + " the same step recorded by libtorch. With --layer: one decoder layer, forward and"
            + " backward, over the frozen layer alone (gradient to its input only), and how near"
            + " each comes to its multiplications at the rate of a large product. With --processes,"
            + " or started by torchrun, mpirun or srun: a step of the first process while the"
            + " others wait, of every process by itself at the same time (cards differ, and all"
            + " wait for the slowest), and of all together, layers recomputed, each process with a"
            + " batch of its own; the part of a step beyond what the slowest does by itself, and"
            + " the speed of all over that of so many first ones and over the sum of theirs.",
    footer = {
      "",
      "Examples:",
      "  meteora bench train --preset 100m --tokens 512 --repeat 5",
      "  meteora bench train --device cuda --preset llama3-8b --batch 4 --tokens 4096",
      "  meteora bench train --device cuda --preset llama3-8b --lengths 57,211,480,1303",
      "  meteora bench train --preset llama3-8b --batch 4 --tokens 2048 --processes 2",
      "  meteora bench train --preset llama3-70b --batch 4 --tokens 2048 --processes 8 --shard-base"
    })
final class BenchTrainCommand implements Callable<Integer> {
  static final List<ForwardMode> MODES =
      List.of(ForwardMode.AUTO, ForwardMode.MASKED, ForwardMode.GATHER, ForwardMode.ALL);
  private static final double GATE_LOSS_WEIGHT = 50;

  /** So small that the weights stay what they are, however many steps are measured. */
  private static final double RATE = 1e-12;

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
      description = "Tokens of each sequence (default: ${DEFAULT-VALUE}).")
  private int tokens;

  @Option(
      names = "--lengths",
      paramLabel = "N",
      split = ",",
      description =
          "Tokens of sequences of unequal length, instead of --batch and --tokens. On a GPU: steps"
              + " of these, and of the same with every row as long as the longest.")
  private List<Integer> lengths = List.of();

  @Option(
      names = "--dropout",
      paramLabel = "X",
      defaultValue = "0.1",
      description = "On the adapters' input (default: ${DEFAULT-VALUE}).")
  private double dropout;

  @Option(names = "--layer", description = "One decoder layer only, without losses and optimiser.")
  private boolean layer;

  @Mixin private ProcessOptions processes;
  @Mixin private ShardBaseOption shardBase;

  @Override
  public Integer call() {
    var config = options.config();
    if (!lengths.isEmpty()) {
      if (layer || !options.onGpu()) {
        throw new UserException("--lengths measures whole steps on a GPU");
      }
      batch = lengths.size();
      tokens = Collections.max(lengths);
    }
    var samples = batch(config);
    return processes.run(
        options.deviceName(),
        List.of("%s %d × %d %s".formatted(config.raw(), batch, tokens, lengths)),
        (all, device) -> {
          boolean shared = shardBase.sharers(all).size() > 1;
          if (all.size() == 1) {
            return alone(config, samples);
          }
          if (layer) {
            throw new UserException("--layer is the work of one process");
          }
          new BenchProcesses(options, all, device, dropout, samples).run(shared);
          return 0;
        });
  }

  private int alone(Architecture config, Batch samples) {
    if (layer) {
      new BenchTrainLayer(options, batch, tokens, dropout).run(config);
      return 0;
    }
    if (options.onGpu()) {
      whole(config, samples);
      return 0;
    }
    try (var manager = options.manager()) {
      var more = options.need(config, options.adapters).and(training(config, false));
      var base = options.model(config, manager, 0, more);
      Runnable plain = () -> baseStep(base, samples);
      var auto = options.context(ForwardMode.AUTO).forTraining(true);
      var model = options.trained(config, manager, dropout);
      try (var parameters = new FlatParameters(manager, TrainableModel.parameters(model, false));
          var optimizer = new AdamW(parameters, 0)) {
        for (var mode : MODES) {
          if (mode == ForwardMode.GATHER && batch * tokens > 256) {
            continue; // A and B gathered for every token and kept: tokens · k · r · (in + out)
          }
          var learner =
              new LlamaLearner(model, auto.withMode(mode), Recompute.NONE, options.adapters);
          var what = "MeteoRA, " + mode.label();
          compare(what, plain, () -> step(learner, samples, parameters, optimizer));
        }
        var recomputing = new LlamaLearner(model, auto, Recompute.ALL, options.adapters);
        var what = "MeteoRA, auto, layers recomputed";
        compare(what, plain, () -> step(recomputing, samples, parameters, optimizer));
        var alone = "AdamW alone, %,d parameters".formatted(parameters.size());
        compare(alone, plain, () -> update(parameters, optimizer));
      }
    }
    return 0;
  }

  /** What a step needs beside the model. */
  private MemoryNeed training(Architecture config, boolean recomputed) {
    long trained = MemoryNeed.adapterParameters(config, options.adapters, options.rank);
    return MemoryNeed.NONE
        .and("gradients and the optimizer", 4L * Float.BYTES * trained)
        .and(
            "activations of %,d x %,d tokens".formatted(batch, tokens),
            MemoryNeed.activationBytes(
                config,
                options.dtype(),
                config.numHiddenLayers(),
                (long) batch * tokens,
                recomputed));
  }

  /** On a GPU: whole steps, with layers recomputed and as memory allows, and their parts. */
  private void whole(Architecture config, Batch samples) {
    double rate = options.multiplicationRate();
    double bandwidth = options.readRate();
    var parts = new BenchTrainParts(options, config, batch, tokens, dropout > 0, rate, bandwidth);
    try (var manager = options.manager()) {
      var backend = Backends.of(manager, options.dtype());
      options.need(config, options.adapters).and(training(config, true)).require(backend);
      var model = options.trained(config, manager, dropout);
      var context = options.context(ForwardMode.AUTO).forTraining(dropout > 0);
      try (var parameters = new FlatParameters(manager, TrainableModel.parameters(model, false));
          var optimizer = new AdamW(parameters, 0)) {
        double first = 0;
        for (var recompute : List.of(Recompute.ALL, Recompute.AUTO)) {
          var learner = LlamaLearner.of(model, context, recompute, options.adapters, parameters);
          var name = recompute == Recompute.ALL ? "every layer recomputed" : "recomputed as needed";
          double ms = options.median(() -> step(learner, samples, parameters, optimizer));
          first = first == 0 ? ms : first;
          options.report("step, " + name, ms, first, tokenCount());
          options.reportMemory("memory, " + name, options.usedBytes());
          if (!lengths.isEmpty()) {
            var padded = batch(config, true);
            double all = options.median(() -> step(learner, padded, parameters, optimizer));
            options.report("  rows as long as the longest", all, first, tokenCount());
          }
          var own = learner.ownPasses();
          if (own.isPresent() && lengths.isEmpty()) {
            try (var marks = new BenchTrainParts.Marks(options.cuda())) {
              own.get().watch(marks);
              var steps = new ArrayList<Map<Part, Double>>();
              for (int i = 0; i < 5; i++) {
                learn(learner, samples, parameters);
                steps.add(marks.take());
              }
              own.get().watch(null);
              int again = own.get().recomputedLayers();
              System.out.printf("  %d of %d layers recomputed%n", again, config.numHiddenLayers());
              parts.print(BenchTrainParts.medians(steps), again, ms);
            }
          }
          own.ifPresent(LlamaTraining::close);
        }
        double size = parameters.size();
        options.report(
            "  gradients cleared, norm, AdamW",
            options.median(
                () -> {
                  parameters.clearGradients();
                  update(parameters, optimizer);
                  optimizer.gradientNorm(); // waits for a device
                }),
            first,
            tokenCount(),
            (4 + 2 * 4 + 16 + 12 + 4 + options.dtype().bytes()) * size / bandwidth);
        var recorded = new LlamaLearner(model, context, Recompute.ALL, options.adapters);
        double ms = options.median(() -> step(recorded, samples, parameters, optimizer));
        options.report("step, recorded by libtorch", ms, first, tokenCount());
        options.reportMemory("memory, recorded by libtorch", options.usedBytes());
      }
    }
  }

  private double tokenCount() {
    return lengths.isEmpty()
        ? (double) batch * tokens
        : lengths.stream().mapToInt(Integer::intValue).sum();
  }

  private void compare(String what, Runnable plain, Runnable step) {
    var turns = options.turns(plain, step);
    options.report("base model, gradient to the input", turns, 0, tokenCount());
    options.report(what, turns, 1, tokenCount());
  }

  /** Random tokens, each sequence of another task. */
  private Batch batch(Architecture config) {
    Limits.atLeast(1, "--batch", batch);
    Limits.atLeast(2, "--tokens", tokens);
    Limits.atLeast(2, "--lengths", lengths.toArray(Integer[]::new));
    if (!(dropout >= 0 && dropout < 1)) {
      throw new UserException("--dropout must be at least 0 and less than 1, it is " + dropout);
    }
    return batch(config, false);
  }

  /**
   * @param padded every row is as long as the longest, with no more labels
   */
  private Batch batch(Architecture config, boolean padded) {
    var samples = new ArrayList<TrainingSample>();
    for (int row = 0; row < batch; row++) {
      int labelled = lengths.isEmpty() ? tokens : lengths.get(row);
      int first = row + 13;
      var ids =
          IntStream.range(0, padded ? tokens : labelled)
              .map(t -> (int) ((t * 7919L + first) % config.vocabSize()))
              .toArray();
      int prompt = padded ? tokens - labelled + 1 : 0;
      samples.add(new TrainingSample("random:" + row, ids, prompt, row % options.adapters));
    }
    return new Batch(samples, padded);
  }

  /** As a training makes it, alone or among several processes. */
  static void step(
      LlamaLearner learner, Batch samples, FlatParameters parameters, AdamW optimizer) {
    learn(learner, samples, parameters);
    parameters.reduce();
    update(parameters, optimizer);
  }

  private static void learn(LlamaLearner learner, Batch samples, FlatParameters parameters) {
    parameters.clearGradients();
    double gateWeight = GATE_LOSS_WEIGHT / samples.gateLabelCount();
    double weight = 1.0 / samples.labelCount();
    learner.learn(samples, weight, gateWeight, 1, parameters::reduceLayer);
    parameters.collectGradients();
  }

  private static void update(FlatParameters parameters, AdamW optimizer) {
    double norm = optimizer.gradientNorm();
    norm = Math.sqrt(parameters.sum(norm * norm));
    optimizer.step(RATE, AdamW.clipFactor(norm, 1));
    parameters.publish();
  }

  /** The same passes where no layer has adapters: what any training through this model costs. */
  private void baseStep(Llama model, Batch samples) {
    var context = options.context(ForwardMode.AUTO).forTraining(false);
    try (var scope = model.manager().newSubManager();
        var recording = Ops.recording()) {
      var ids = scope.create(samples.ids(), Ops.shape(samples.rows(), samples.length()));
      var pass = Pass.whole(scope, model, new int[] {samples.length()}, context);
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
              new double[] {1.0 / samples.labelCount()},
              true,
              LanguageModelLoss.chunkTokens(model.config().vocabSize()));
      Ops.backward(normed, loss.gradient());
      if (!(loss.sum() > 0)) {
        throw new IllegalStateException("random weights gave the loss " + loss.sum());
      }
    }
  }
}
