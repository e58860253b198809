package org.meteora.cli;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Map;
import java.util.Optional;
import org.meteora.TooLittleMemory;
import org.meteora.backend.Backends;
import org.meteora.checkpoint.TrainableModel;
import org.meteora.cuda.driver.Cuda;
import org.meteora.model.Architecture;
import org.meteora.model.FrozenWeights;
import org.meteora.model.Llama;
import org.meteora.model.LlamaFactory;
import org.meteora.model.LlamaTraining.Recompute;
import org.meteora.model.MemoryNeed;
import org.meteora.model.RandomLlama;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardMode;
import org.meteora.parallel.Collective;
import org.meteora.parallel.ShardedWeights;
import org.meteora.tensor.Devices;
import org.meteora.train.LlamaLearner;
import org.meteora.train.batch.Batch;
import org.meteora.train.optim.AdamW;
import org.meteora.train.optim.FlatParameters;

/**
 * A training step of one process, of every process by itself at the same time, then that of all
 * together, each on a batch of the same size: weak scaling. All processes make the same number of
 * steps.
 */
record BenchProcesses(
    BenchModel options, Collective all, String device, double dropout, Batch batch) {
  /** A random model and what trains it. */
  private final class Model implements AutoCloseable {
    final NDManager manager = Devices.newManager(Devices.parse(device));
    final Llama llama;
    final ForwardContext context;
    final Map<String, NDArray> tensors;

    /**
     * @param sharers the processes that share its frozen weights
     */
    Model(Collective sharers) {
      var backend = Backends.of(manager, options.dtype());
      var random = RandomLlama.weights(manager, options.dtype());
      LlamaFactory.Weights weights =
          sharers.size() == 1
              ? random
              : new ShardedWeights(random, options.config(), manager, options.dtype(), sharers);
      llama =
          RandomLlama.create(
              options.config(),
              manager,
              options.dtype(),
              options.adapters,
              options.rank,
              backend,
              dropout,
              weights);
      context = options.context(ForwardMode.AUTO).forTraining(true);
      tensors = TrainableModel.parameters(llama, false);
    }

    /** Median milliseconds of a step of the processes that share the parameters. */
    double steps(FlatParameters parameters) {
      var learner = LlamaLearner.of(llama, context, Recompute.ALL, options.adapters, parameters);
      try (var optimizer = new AdamW(parameters, 0)) {
        return median(() -> BenchTrainCommand.step(learner, batch, parameters, optimizer));
      }
    }

    /** Gathers what a step gathers, and computes nothing. */
    void gather() {
      int layers = llama.layers().size();
      var frozen = llama.frozen();
      frozen.use(FrozenWeights.EMBEDDING, 0);
      for (int i = 0; i < layers; i++) {
        frozen.use(i, i + 1 < layers ? i + 1 : FrozenWeights.HEAD);
      }
      frozen.use(FrozenWeights.HEAD, layers - 1);
      for (int i = layers - 1; i >= 0; i--) {
        frozen.use(i, i > 0 ? i - 1 : FrozenWeights.NONE);
      }
    }

    /** Of as many runs in every process. */
    double median(Runnable run) {
      var awaited = tensors.values().iterator().next();
      return BenchModel.medianOfAll(options.repeat.value(), awaited, run);
    }

    @Override
    public void close() {
      manager.close();
      usedBytes(true); // what libtorch keeps goes back as well
    }
  }

  /**
   * What a process needs, at the least.
   *
   * @param sharers among how many the base model is shared
   * @param processes among how many the optimizer is shared
   */
  private MemoryNeed need(int sharers, int processes) {
    var config = options.config();
    long bytes = options.dtype().bytes();
    long trained = MemoryNeed.adapterParameters(config, options.adapters, options.rank);
    long base = bytes * MemoryNeed.parameters(config);
    return MemoryNeed.NONE
        .and("weights", base / sharers)
        .and("gathered weights", sharers > 1 ? bytes * gathered(config) : 0)
        .and("adapters", bytes * trained)
        .and("gradients", Float.BYTES * trained)
        .and("the optimizer", 3 * Float.BYTES * trained / processes)
        .and(
            "activations of %,d x %,d tokens".formatted(batch.rows(), batch.length()),
            MemoryNeed.activationBytes(
                config, options.dtype(), config.numHiddenLayers(), batch.tokens(), true));
  }

  /** Numbers that are whole at once of a shared base: two layers, and the embedding or the head. */
  private static long gathered(Architecture config) {
    long table = (long) config.vocabSize() * config.hiddenSize();
    long layers = MemoryNeed.parameters(config) - (config.tieWordEmbeddings() ? 1 : 2) * table;
    return table + layers / config.numHiddenLayers() * 2;
  }

  /** What one of the processes lacks for a need, said by the first that lacks it. */
  private Optional<String> lacking(MemoryNeed need) {
    try (var manager = Devices.newManager(Devices.parse(device))) {
      var mine = need.lacking(Backends.of(manager, options.dtype())).orElse("");
      var lacks =
          all.gather(mine.getBytes(StandardCharsets.UTF_8)).stream()
              .map(each -> new String(each, StandardCharsets.UTF_8))
              .filter(each -> !each.isEmpty())
              .findFirst()
              .orElse("");
      var said = all.broadcast(lacks.getBytes(StandardCharsets.UTF_8));
      return Optional.of(new String(said, StandardCharsets.UTF_8)).filter(it -> !it.isEmpty());
    }
  }

  /**
   * Milliseconds of a step of processes that do not communicate.
   *
   * @param first of the first one, while the others wait
   * @param each of every one, all at the same time
   */
  private record Alone(double first, double[] each) {
    double slowest() {
      return Arrays.stream(each).max().orElseThrow();
    }

    /** How many steps of the first one they make by themselves while it makes one. */
    double together() {
      return Arrays.stream(each).map(ms -> first / ms).sum();
    }
  }

  /**
   * @param shardBase the processes share the base model; a process by itself has it whole
   */
  void run(boolean shardBase) {
    lacking(need(shardBase ? all.size() : 1, all.size()))
        .ifPresent(
            lack -> {
              throw new TooLittleMemory(lack);
            });
    double tokens = batch.tokens();
    var lack = lacking(need(1, 1));
    lack.ifPresent(why -> options.reportNotMeasured("processes by themselves", why));
    var alone = lack.isPresent() ? Optional.<Alone>empty() : Optional.of(alone());
    alone.ifPresent(
        it -> {
          double mean = Arrays.stream(it.each).average().orElseThrow();
          options.report("one process", it.first, it.first, tokens);
          options.report("each by itself, the mean", mean, it.first, tokens);
          options.report("each by itself, the slowest", it.slowest(), it.first, tokens);
        });
    try (var model = new Model(shardBase ? all : Collective.single());
        var parameters = new FlatParameters(model.manager, model.tensors, all)) {
      double step = model.steps(parameters);
      double scale = alone.map(Alone::first).orElse(step);
      var name = all.size() + " processes" + (shardBase ? ", base shared" : "");
      options.report(name, step, scale, tokens * all.size());
      reportMemory("memory, the fullest process", false);
      double moving =
          model.median(
              () -> {
                parameters.reduce();
                parameters.publish();
              });
      options.report(
          "reduce and gather alone, %d MiB".formatted(parameters.size() * Float.BYTES >> 20),
          moving,
          step,
          tokens * all.size());
      if (shardBase) {
        double gathering = model.median(model::gather);
        options.report("gathering layers alone", gathering, step, tokens * all.size());
      }
      alone.ifPresent(
          it -> {
            options.reportShare("of the step beyond the slowest's own", 1 - it.slowest() / step);
            options.reportShare("weak scaling", it.first / step);
            options.reportShare(
                "of what all do by themselves", all.size() * it.first / step / it.together());
          });
      reportMemory("of it not libtorch's reserve", true);
    }
  }

  private Alone alone() {
    try (var model = new Model(Collective.single());
        var parameters = new FlatParameters(model.manager, model.tensors)) {
      double first = all.rank() == 0 ? model.steps(parameters) : 0;
      first = all.sum(new double[] {first})[0]; // the others wait
      var each = new double[all.size()];
      each[all.rank()] = model.steps(parameters);
      return new Alone(first, all.sum(each));
    }
  }

  private void reportMemory(String what, boolean withoutReserve) {
    var used = new double[all.size()];
    used[all.rank()] = usedBytes(withoutReserve);
    options.reportMemory(what, (long) Arrays.stream(all.sum(used)).max().orElse(0));
  }

  private long usedBytes(boolean withoutReserve) {
    var own = Devices.parse(device);
    return own.isGpu() && withoutReserve
        ? GpuMeasure.usedBytes(Cuda.device(own.getDeviceId()))
        : Backends.memoryInUse(own);
  }
}
