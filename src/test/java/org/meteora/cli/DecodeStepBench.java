package org.meteora.cli;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Locale;
import java.util.Optional;
import java.util.Random;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.meteora.cli.RandomDecodeModel.Sizes;
import org.meteora.cuda.decode.DecodeEngine;
import org.meteora.cuda.decode.DecodeModel;
import org.meteora.cuda.decode.KvMemory;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Event;
import org.meteora.cuda.driver.Kernel;
import org.meteora.cuda.driver.Work;
import org.meteora.cuda.kernel.MatrixVector;

/**
 * Times decode steps of {@link DecodeEngine} on random weights of Llama-3-8B's shapes, made on the
 * device, beside the same step without adapters and the time that reading every needed byte once
 * would take at the bandwidth measured in the same run.
 */
final class DecodeStepBench {
  /** One measurement; milliseconds are medians of a step. */
  private record Result(
      int batch, int context, double base, double meteora, double floorBase, double floorMeteora) {}

  private final Cuda cuda;
  private final RandomDecodeModel random;
  private final DecodeModel model;

  private DecodeStepBench(Cuda cuda, RandomDecodeModel random) {
    this.cuda = cuda;
    this.random = random;
    this.model = random.model();
  }

  /**
   * Bytes a step must read at least: weights, KV cache, and of the adapters the gates and the rows
   * that can be chosen.
   */
  private long bytes(int batch, int context, boolean adapters) {
    var total = 2L * random.sizes().vocab() * random.sizes().hidden();
    for (var layer : model.layers()) {
      for (var l : layer.linears()) {
        total += 2L * l.in() * l.out();
        if (adapters && l.adapters().isPresent()) {
          // chosen by at least one of `batch` tokens, on average, when each picks k of N at random
          var n = l.adapters().get().count();
          var chosen = n * (1 - Math.pow(1 - (double) random.sizes().topK() / n, batch));
          total +=
              2L * n * l.in() + (long) (2 * chosen * random.sizes().rank() * (l.in() + l.out()));
        }
      }
      total += 2L * 2 * batch * context * random.sizes().kvHeads() * random.sizes().headDim();
    }
    return total;
  }

  /** The engine at about {@code context} cached tokens of {@code batch} sequences. */
  private DecodeEngine engine(
      DecodeModel m, KvMemory cache, int batch, int context, MatrixVector.Tuning tuning) {
    var each = cache.blocks() / batch;
    var engine = new DecodeEngine(cuda, m, cache, batch, each, 1, tuning);
    var lengths = new int[batch];
    Arrays.fill(lengths, context);
    var order = IntStream.range(0, cache.blocks()).boxed().collect(Collectors.toList());
    Collections.shuffle(order, new Random(1)); // as blocks lie after a while
    var tables = new int[batch][each];
    for (var i = 0; i < batch * each; i++) {
      tables[i / each][i % each] = order.get(i);
    }
    engine.rows(tables, lengths);
    return engine;
  }

  /** Median milliseconds of a step of {@code m}. */
  private double time(
      DecodeModel m,
      int batch,
      int context,
      int steps,
      MatrixVector.Tuning tuning,
      boolean graphs) {
    var cache = random.cache(batch, context + steps + 16);
    var times = new double[steps];
    try (var engine = engine(m, cache, batch, context, tuning);
        var begin = new Event();
        var end = new Event()) {
      engine.useGraphs(graphs);
      engine.step(IntStream.range(1000, 1000 + batch).toArray());
      for (var i = 0; i < 5; i++) {
        engine.enqueue();
      }
      engine.nextTokens();
      for (var i = 0; i < steps; i++) {
        begin.record(engine.stream());
        engine.enqueue();
        end.record(engine.stream());
        times[i] = end.millisSince(begin);
      }
    } finally {
      random.release(cache);
    }
    Arrays.sort(times);
    return times[steps / 2];
  }

  /** Launches that are timed together, of one layer, by their places among a step's. */
  private record Part(String name, int from, int to) {}

  /**
   * A layer's launches one by one, or of up to 16 rows each product with what is behind it: those
   * kernels wait for gates that the product leaves.
   */
  private List<Part> parts(List<Work> step, int batch) {
    int each =
        IntStream.range(2, step.size())
            .filter(i -> isNorm(step, i))
            .skip(1)
            .findFirst()
            .orElseThrow();
    var parts = new ArrayList<Part>();
    for (var i = 1; i <= each; i++) {
      var kernel = step.get(i) instanceof Kernel.Launch launch ? launch.toString() : "library";
      var name = kernel.replaceFirst("decode_(route_)?", "");
      var begins = batch > 16 || name.startsWith("product") || name.startsWith("attention");
      if (begins) {
        parts.add(new Part(name, i, i + 1));
      } else {
        var last = parts.removeLast();
        parts.add(new Part(last.name() + ", " + name, last.from(), i + 1));
      }
    }
    return parts;
  }

  private static boolean isNorm(List<Work> step, int at) {
    return step.get(at).toString().contains("add_residual");
  }

  /**
   * Prints microseconds of each part of a layer, from graphs that hold that part of all layers, and
   * behind them the launch that sets counters back.
   */
  private void profile(DecodeModel m, int batch, int context, MatrixVector.Tuning tuning) {
    var cache = random.cache(batch, context + 256);
    try (var engine = engine(m, cache, batch, context, tuning);
        var begin = new Event();
        var end = new Event()) {
      engine.step(new int[batch]);
      var all = engine.launches();
      var parts = parts(all, batch);
      var each = parts.getLast().to() - 1;
      for (var part : parts) {
        var some = new ArrayList<Work>();
        for (var layer = 0; layer < random.sizes().layers(); layer++) {
          some.addAll(all.subList(layer * each + part.from(), layer * each + part.to()));
        }
        some.add(all.getLast());
        try (var graph =
            engine.stream().capture(() -> some.forEach(launch -> launch.on(engine.stream())))) {
          var times = new double[9];
          for (var i = 0; i < times.length; i++) {
            begin.record(engine.stream());
            graph.launch(engine.stream());
            end.record(engine.stream());
            times[i] = end.millisSince(begin);
          }
          Arrays.sort(times);
          System.out.printf(
              Locale.ROOT,
              "batch %3d %-8s %8.2f us %s%n",
              batch,
              m == model ? "MeteoRA" : "base",
              times[times.length / 2] * 1e3 / random.sizes().layers(),
              part.name());
        }
      }
    } finally {
      random.release(cache);
    }
  }

  /** A model without its adapters. */
  private static DecodeModel base(DecodeModel model) {
    var layers =
        model.layers().stream()
            .map(
                layer ->
                    new DecodeModel.Layer(
                        layer.inputNorm(),
                        layer.postAttentionNorm(),
                        layer.linears().stream().map(DecodeStepBench::bare).toList(),
                        Optional.empty()))
            .toList();
    return new DecodeModel(
        model.dtype(),
        model.hidden(),
        model.heads(),
        model.kvHeads(),
        model.headDim(),
        model.intermediate(),
        model.vocab(),
        model.eps(),
        model.invFreq(),
        model.ropeScale(),
        model.embedding(),
        model.finalNorm(),
        model.head(),
        model.topK(),
        model.scores(),
        layers);
  }

  private static DecodeModel.Linear bare(DecodeModel.Linear linear) {
    return new DecodeModel.Linear(
        linear.weight(), linear.bias(), linear.out(), linear.in(), Optional.empty());
  }

  private void profiles(int[] batches, int context) {
    for (var batch : batches) {
      for (var m : List.of(base(model), model)) {
        profile(m, batch, context, MatrixVector.Tuning.standard());
      }
    }
  }

  /** Base and MeteoRA at one batch size. */
  private Result measure(int batch, int context, int steps, double bandwidth) {
    var tuning = MatrixVector.Tuning.standard();
    var base = time(base(model), batch, context, steps, tuning, true);
    var meteora = time(model, batch, context, steps, tuning, true);
    return new Result(
        batch,
        context,
        base,
        meteora,
        bytes(batch, context, false) / bandwidth * 1e3,
        bytes(batch, context, true) / bandwidth * 1e3);
  }

  private static int[] numbers(String[] args, String name, String standard) {
    var at = Arrays.asList(args).indexOf(name);
    return Arrays.stream((at < 0 ? standard : args[at + 1]).split(","))
        .mapToInt(Integer::parseInt)
        .toArray();
  }

  /**
   * Prints the table, of {@code --rows 1,4,…}, {@code --context 512} and {@code --adapters 28};
   * {@code --profile} adds what the launches of a layer take, {@code --variants} what each design
   * choice brings.
   */
  public static void main(String[] args) {
    var batches = numbers(args, "--rows", "1,4,16,17,32,64,128,256");
    var context = numbers(args, "--context", "512")[0];
    var adapters = numbers(args, "--adapters", "28")[0];
    var cuda = Cuda.device(0);
    var measure = new GpuMeasure(cuda);
    var bandwidth = measure.readBandwidth();
    try (var random = new RandomDecodeModel(cuda, Sizes.llama3(32, adapters, 8, 2), measure)) {
      var bench = new DecodeStepBench(cuda, random);
      System.out.printf(
          Locale.ROOT,
          "%s, %d multiprocessors, reads %.2f TB/s%n",
          cuda.name(),
          cuda.multiprocessors(),
          bandwidth / 1e12);
      if (Arrays.asList(args).contains("--profile")) {
        bench.profiles(batches, context);
      }
      System.out.println("batch  base ms  MeteoRA ms  ratio  floor base  floor MeteoRA  of floor");
      for (var batch : batches) {
        var r = bench.measure(batch, context, 40, bandwidth);
        System.out.printf(
            Locale.ROOT,
            "%5d  %7.3f  %10.3f  %5.3f  %10.3f  %13.3f  %7.0f%%%n",
            batch,
            r.base(),
            r.meteora(),
            r.meteora() / r.base(),
            r.floorBase(),
            r.floorMeteora(),
            100 * r.floorMeteora() / r.meteora());
      }
      if (Arrays.asList(args).contains("--variants")) {
        bench.variants();
      }
    }
  }

  private void variants() {
    var standard = MatrixVector.Tuning.standard();
    record Variant(String name, MatrixVector.Tuning tuning, boolean graphs) {}
    var all =
        List.of(
            new Variant("standard", standard, true),
            new Variant("standard again", standard, true),
            new Variant("no graph", standard, false),
            new Variant(
                "no overlap",
                new MatrixVector.Tuning(
                    standard.sharedBytes(),
                    standard.inputBytes(),
                    false,
                    standard.gatesFirst(),
                    standard.maxStackedABytes()),
                true),
            new Variant(
                "chosen A only",
                new MatrixVector.Tuning(
                    standard.sharedBytes(), standard.inputBytes(), true, standard.gatesFirst(), 0),
                true),
            new Variant(
                "gates not first",
                new MatrixVector.Tuning(
                    standard.sharedBytes(),
                    standard.inputBytes(),
                    true,
                    false,
                    standard.maxStackedABytes()),
                true),
            new Variant(
                "shared 160 KiB",
                new MatrixVector.Tuning(
                    160 << 10,
                    standard.inputBytes(),
                    true,
                    standard.gatesFirst(),
                    standard.maxStackedABytes()),
                true),
            new Variant(
                "shared 220 KiB",
                new MatrixVector.Tuning(
                    220 << 10,
                    standard.inputBytes(),
                    true,
                    standard.gatesFirst(),
                    standard.maxStackedABytes()),
                true),
            new Variant(
                "input 36 KiB",
                new MatrixVector.Tuning(
                    standard.sharedBytes(),
                    36 << 10,
                    true,
                    standard.gatesFirst(),
                    standard.maxStackedABytes()),
                true),
            new Variant(
                "input 114 KiB",
                new MatrixVector.Tuning(
                    standard.sharedBytes(),
                    114 << 10,
                    true,
                    standard.gatesFirst(),
                    standard.maxStackedABytes()),
                true));
    System.out.println(
        "variant              batch 1  batch 4  batch 16   base 1   base 4  base 16");
    for (var v : all) {
      System.out.printf(
          Locale.ROOT,
          "%-20s %7.3f  %7.3f  %8.3f  %7.3f  %7.3f  %7.3f%n",
          v.name(),
          time(model, 1, 512, 24, v.tuning(), v.graphs()),
          time(model, 4, 512, 24, v.tuning(), v.graphs()),
          time(model, 16, 512, 24, v.tuning(), v.graphs()),
          time(base(model), 1, 512, 24, v.tuning(), v.graphs()),
          time(base(model), 4, 512, 24, v.tuning(), v.graphs()),
          time(base(model), 16, 512, 24, v.tuning(), v.graphs()));
    }
  }
}
