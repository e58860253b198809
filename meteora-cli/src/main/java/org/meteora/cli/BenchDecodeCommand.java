package org.meteora.cli;

import ai.djl.ndarray.NDArray;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Optional;
import java.util.Random;
import java.util.SplittableRandom;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.LongStream;
import org.meteora.UserException;
import org.meteora.backend.cuda.CudaDecoder;
import org.meteora.data.config.Limits;
import org.meteora.generate.DecodeSession;
import org.meteora.generate.GenerationConfig;
import org.meteora.model.Architecture;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.model.MemoryNeed;
import org.meteora.model.RandomLlama;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardMode;
import org.meteora.moe.Router;
import org.meteora.nn.KvBlock;
import org.meteora.nn.Projection;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** {@code meteora bench decode}: one step of generation. */
@Command(
    name = "decode",
    description =
        "One decode step: bare matmuls (all base linears and the head), the base model, and MeteoRA"
            + " in each mode. On the CPU steps and bare matmuls take turns, and a ratio is over the"
            + " bare matmuls of its own turns. On a GPU the base model and MeteoRA are measured as"
            + " generation runs them, a step as one CUDA graph, and operation by operation"
            + " (eager).",
    footer = {
      "",
      "Examples:",
      "  meteora bench decode --preset 100m",
      "  meteora bench decode --device cuda --preset llama3-8b --batch 1,4,16"
    })
final class BenchDecodeCommand implements Callable<Integer> {
  @Mixin private BenchModel options;

  @Option(
      names = "--batch",
      paramLabel = "N,N,…",
      defaultValue = "1",
      split = ",",
      description =
          "Sequences; several values are measured one after another (default: ${DEFAULT-VALUE}).")
  private List<Integer> batches;

  @Option(
      names = "--context",
      paramLabel = "N",
      defaultValue = "512",
      description = "Tokens before the step (default: ${DEFAULT-VALUE}).")
  private int context;

  private static final GenerationConfig GREEDY =
      GenerationConfig.greedy(List.of(), Integer.MAX_VALUE);

  private long beyond;

  @Mixin private RouterListOption routers;

  @Override
  public Integer call() {
    Limits.atLeast(1, "--batch", Collections.min(batches));
    Limits.atLeast(1, "--context", context);
    var names = routers.names();
    var config = options.config();
    try (var manager = options.manager();
        var recording = Ops.notRecording()) {
      var gpu = manager.getDevice().isGpu();
      var baseline = new double[batches.size()];
      double rate = options.readRate();
      double bandwidth = rate > 0 ? rate : Double.POSITIVE_INFINITY; // unknown: no floor
      var cache = options.cache(config, Collections.max(batches), context);
      try (var own = manager.newSubManager()) {
        // of the model that follows: it is the larger one
        var adapters = options.need(config, options.adapters).parts().get("adapters");
        var base = options.model(config, own, 0, cache.and("adapters", adapters));
        var auto = options.context(ForwardMode.AUTO);
        for (int i = 0; i < batches.size(); i++) {
          int batch = batches.get(i);
          if (gpu) {
            baseline[i] = options.median(() -> matmuls(base, batch));
            options.report(name(batch, "bare matmuls"), baseline[i], baseline[i], batch);
          }
          double floor = bytes(config, batch, false) / bandwidth;
          if (gpu && batch <= CudaDecoder.MAX_ROWS) {
            baseline[i] = graph(base, batch, auto, GREEDY);
            options.report(name(batch, "base model"), baseline[i], baseline[i], batch, floor);
          }
          step(gpu ? "base model, eager" : "base model", base, batch, auto, baseline[i], floor);
        }
      }
      try (var own = manager.newSubManager()) {
        var model = options.model(config, own, options.adapters, cache);
        var auto = options.context(ForwardMode.AUTO);
        // one of each: what backends lay out for a router stays as long as the model
        var routed = new HashMap<String, Router>();
        names.forEach(name -> routed.put(name, RandomRouters.of(name, model, options.adapters)));
        for (int i = 0; i < batches.size(); i++) {
          int batch = batches.get(i);
          double floor = bytes(config, batch, true) / bandwidth;
          if (gpu && batch <= CudaDecoder.MAX_ROWS) {
            for (var mode : List.of(ForwardMode.AUTO, ForwardMode.FUSED)) {
              var context = options.context(mode);
              graph("MeteoRA, " + mode.label(), model, context, baseline[i], batch, floor);
            }
            double sampling = graph(model, batch, auto, GREEDY.withSampling(0.6, 0.9, 50, 0));
            var label = name(batch, "MeteoRA, auto, sampling");
            options.report(label, sampling, baseline[i], batch, floor);
            options.reportMemory(name(batch, "memory that the steps take"), beyond);
          }
          for (var mode : BenchModel.MODES) {
            var label = "MeteoRA, " + mode.label() + (gpu ? ", eager" : "");
            step(label, model, batch, options.context(mode), baseline[i], floor);
          }
          for (var name : names) {
            var its = RandomRouters.context(routed.get(name), model, batch, auto);
            if (gpu && CudaDecoder.refusal(model, batch, its).isEmpty()) {
              graph("router " + name, model, its, baseline[i], batch, floor);
            } else {
              var label = "router " + name + (gpu ? ", eager" : "");
              step(label, model, batch, its, baseline[i], floor);
            }
          }
          var listened = auto.withListener(Optional.of(options.recorder()));
          var recorded = "MeteoRA, auto, routing recorded";
          if (gpu && batch <= CudaDecoder.MAX_ROWS) {
            graph(recorded, model, listened, baseline[i], batch, floor);
          } else {
            step(recorded, model, batch, listened, baseline[i], floor);
          }
        }
      }
    }
    return 0;
  }

  /** What a step must read: weights, cache, gates, and A and B of the adapters that are chosen. */
  private double bytes(Architecture config, int batch, boolean gated) {
    double layer = BenchModel.Sizes.of(config, Projection.values()).weights();
    layer += gated ? options.adapterNumbers(config, options.touched(batch)) : 0;
    double numbers =
        (double) config.vocabSize() * config.hiddenSize() + config.numHiddenLayers() * layer;
    return numbers * options.dtype().bytes()
        + MemoryNeed.cacheBytes(config, options.dtype(), batch, context);
  }

  private String name(int batch, String what) {
    return batches.size() == 1 ? what : "batch " + batch + ": " + what;
  }

  private void matmuls(Llama model, int batch) {
    try (var scope = model.manager().newSubManager()) {
      var config = model.config();
      var inputs =
          LongStream.of(
                  config.hiddenSize(),
                  (long) config.numAttentionHeads() * config.headDim(),
                  config.intermediateSize())
              .mapToObj(size -> RandomLlama.normal(scope, model.dtype(), 1, batch, size))
              .toArray(NDArray[]::new);
      for (var layer : model.layers()) {
        for (var linear : layer.projections()) {
          var module = linear.projection();
          var x = inputs[module == Projection.DOWN ? 2 : module == Projection.O ? 1 : 0];
          Ops.linear(x, linear.weight(), null).close();
        }
      }
      var logits = Ops.cast(Ops.linear(inputs[0], model.head(), null), Dtype.F32);
      if (Float.isNaN(logits.toFloatArray()[0])) {
        throw new IllegalStateException("random weights gave NaN");
      }
    }
  }

  /** Measures and reports steps as generation takes them on a GPU. */
  private void graph(
      String what, Llama model, ForwardContext context, double baseline, int batch, double floor) {
    double ms = graph(model, batch, context, GREEDY);
    options.report(name(batch, what), ms, baseline, batch, floor);
  }

  /** Steps as generation takes them on a GPU: {@link CudaDecoder}'s. */
  private double graph(Llama model, int batch, ForwardContext context, GenerationConfig config) {
    int most = most();
    try (var manager = model.manager().newSubManager();
        var cache = model.newCache(manager, new int[batch], most);
        var decoder = new CudaDecoder(model, context.routing(), false)) {
      BenchModel.prefill(model, cache, batch, this.context, context);
      var newest =
          new int[][] {
            Arrays.stream(BenchModel.ids(model, batch)).mapToInt(Math::toIntExact).toArray()
          };
      long without = options.usedBytes(); // the decoder takes its memory at its beginning
      decoder.begin(batch, most, context);
      var blocks = scattered(batch, KvBlock.of(most), decoder.pool().rows());
      var columns = new ArrayList<KvCache.Columns>();
      for (int row = 0; row < batch; row++) {
        for (int at = 0; at < this.context; at += KvCache.BLOCK) {
          int count = Math.min(KvCache.BLOCK, this.context - at);
          columns.add(new KvCache.Columns(row, at, blocks[row][at / KvCache.BLOCK], 0, count));
        }
      }
      decoder.join(cache, columns);
      var uniform = new SplittableRandom(1).longs(batch).toArray();
      // what a router that has looked at the prompts chose is the same at every place
      var router = context.routing().router();
      var steps = new int[1];
      double result =
          options.median(
              () -> {
                int length = this.context + steps[0]++;
                newest[0] =
                    decoder.step(
                        IntStream.range(0, batch)
                            .mapToObj(
                                i ->
                                    new DecodeSession.Next(
                                        blocks[i],
                                        length,
                                        newest[0][i],
                                        new int[0],
                                        uniform[i],
                                        uniform[i],
                                        config,
                                        switch (router) {
                                          case Router.Fixed fixed ->
                                              Optional.of(new Router.Rows.Row(fixed, 0));
                                          case Router.Rows all -> Optional.of(all.rows().get(i));
                                          default -> Optional.empty();
                                        }))
                            .toList(),
                        true);
              });
      beyond = options.usedBytes() - without;
      return result;
    }
  }

  /** Tokens of a sequence at most. */
  private int most() {
    return context + 2 * options.repeat.value() + BenchModel.WARM_UP;
  }

  /** Blocks of each sequence, all over the pool as they are after a while. */
  private static int[][] scattered(int sequences, int each, int blocks) {
    if (blocks < sequences * each) {
      throw new UserException(
          "too little memory for %d sequences of %d blocks of keys and values: there are %d"
              .formatted(sequences, each, blocks));
    }
    var all = IntStream.range(0, blocks).boxed().collect(Collectors.toList());
    Collections.shuffle(all, new Random(1));
    return IntStream.range(0, sequences)
        .mapToObj(i -> all.subList(i * each, (i + 1) * each).stream().mapToInt(it -> it).toArray())
        .toArray(int[][]::new);
  }

  /** Steps, operation by operation; without a baseline in turns with the bare matmuls. */
  private void step(
      String what, Llama model, int batch, ForwardContext context, double baseline, double floor) {
    try (var manager = model.manager().newSubManager();
        var cache = model.newCache(manager, new int[batch], most())) {
      // not measured, and gathering the adapters of all prompts' tokens takes more than a GPU has
      BenchModel.prefill(model, cache, batch, this.context, context.withMode(ForwardMode.AUTO));
      Runnable step = () -> BenchModel.prefill(model, cache, batch, 1, context);
      if (baseline > 0) {
        options.report(name(batch, what), options.median(step), baseline, batch, floor);
      } else {
        var times = options.medians(() -> matmuls(model, batch), step);
        options.report(name(batch, "bare matmuls"), times[0], times[0], batch);
        options.report(name(batch, what), times[1], times[0], batch, floor);
      }
    }
  }
}
