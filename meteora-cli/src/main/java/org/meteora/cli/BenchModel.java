package org.meteora.cli;

import ai.djl.Device;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import java.util.stream.IntStream;
import java.util.stream.LongStream;
import java.util.stream.Stream;
import org.meteora.UserException;
import org.meteora.backend.Backends;
import org.meteora.cuda.driver.Cuda;
import org.meteora.data.config.DeviceOptions;
import org.meteora.data.config.JsonOption;
import org.meteora.data.config.Limits;
import org.meteora.data.config.RoutingTopKOption;
import org.meteora.eval.routes.RoutingMatrix;
import org.meteora.io.Jsonl;
import org.meteora.model.Architecture;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.model.MemoryNeed;
import org.meteora.model.RandomLlama;
import org.meteora.model.llama.LlamaConfig;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardMode;
import org.meteora.moe.RoutingListener;
import org.meteora.moe.RoutingSettings;
import org.meteora.nn.Projection;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/**
 * The options of all benchmarks, and the random model they describe.
 *
 * <p>Long, because what all benchmarks share stands here: options, model, and how it is timed and
 * reported.
 */
final class BenchModel {
  @Option(
      names = "--preset",
      defaultValue = "100m",
      paramLabel = "NAME",
      description =
          "Shapes of the model: 100m, llama3-8b, llama2-13b, llama3-70b (default:"
              + " ${DEFAULT-VALUE}).")
  private String preset;

  @Option(
      names = "--model-config",
      paramLabel = "FILE",
      description = "Shapes from a config.json instead.")
  private Path configFile;

  @Option(
      names = "--adapters",
      paramLabel = "N",
      defaultValue = "28",
      description = "Of each layer (default: ${DEFAULT-VALUE}).")
  int adapters;

  @Option(
      names = "--rank",
      paramLabel = "R",
      defaultValue = "8",
      description = "Of each adapter (default: ${DEFAULT-VALUE}).")
  int rank;

  @Mixin private RoutingTopKOption routingTopK;
  @Mixin private DeviceOptions where;

  @Mixin RepeatOption repeat;

  @Mixin private JsonOption json;

  static final List<ForwardMode> MODES =
      List.of(ForwardMode.AUTO, ForwardMode.GATHER, ForwardMode.MASKED, ForwardMode.ALL);

  /** AUTO, FUSED where there is a GPU, and these. */
  List<ForwardMode> modes(ForwardMode... others) {
    var first =
        onGpu() ? Stream.of(ForwardMode.AUTO, ForwardMode.FUSED) : Stream.of(ForwardMode.AUTO);
    return Stream.concat(first, Stream.of(others)).toList();
  }

  /** Warm-up runs at most, so that a KV cache of so many more columns is enough. */
  static final int WARM_UP = 100;

  Architecture config() {
    Limits.atLeast(1, "--adapters", adapters);
    Limits.atLeast(1, "--rank", rank);
    if (configFile != null) {
      return LlamaConfig.parse(Jsonl.readFile(configFile), configFile.toString());
    }
    var resource = "/presets/" + preset + ".json";
    try (var in = BenchModel.class.getResourceAsStream(resource)) {
      if (!preset.matches("[a-z0-9-]+") || in == null) {
        throw new UserException(
            "unknown preset \"" + preset + "\": choose 100m, llama3-8b, llama2-13b or llama3-70b");
      }
      return LlamaConfig.parse(Jsonl.JSON.readTree(in), resource);
    } catch (IOException e) {
      throw new java.io.UncheckedIOException(e);
    }
  }

  /** What {@code --device} says. */
  String deviceName() {
    return where.device().orElse("auto");
  }

  private Device device() {
    return Devices.parse(deviceName());
  }

  /** Adapters that act on a token. */
  int topK() {
    return routingTopK.value().orElse(RoutingSettings.DEFAULT.topK());
  }

  NDManager manager() {
    return Devices.newManager(device());
  }

  Dtype dtype() {
    return where.dtype().map(Dtype::ofOption).orElseGet(() -> Backends.usualDtype(device()));
  }

  boolean onGpu() {
    return device().isGpu();
  }

  /** Bytes a millisecond that the GPU reads, measured now; 0 on a CPU. */
  double readRate() {
    if (!onGpu()) {
      return 0;
    }
    double bandwidth = new GpuMeasure(cuda()).readBandwidth();
    double ms = 4294967296.0 / bandwidth * 1e3;
    report("reading 4 GiB, %.2f TB/s".formatted(bandwidth / 1e12), ms, ms, 1);
    return bandwidth / 1e3;
  }

  /** The GPU that {@code --device} says. */
  Cuda cuda() {
    return Cuda.device(device().getDeviceId());
  }

  long usedBytes() {
    return GpuMeasure.usedBytes(cuda());
  }

  /** Says how much of the GPU's memory is in use beyond what is named. */
  void reportMemory(String what, long bytes) {
    print(line(what).put("bytes", bytes), "%-34s %10d MiB".formatted(what, bytes >> 20));
  }

  /** Says what part one figure is of another. */
  void reportShare(String what, double share) {
    print(line(what).put("share", share), "%-36s %8.1f %%".formatted(what, 100 * share));
  }

  void reportNotMeasured(String what, String why) {
    print(line(what).put("not_measured", why), what + " are not measured: " + why);
  }

  private static ObjectNode line(String what) {
    return Jsonl.JSON.createObjectNode().put("what", what);
  }

  private void print(ObjectNode line, String text) {
    System.out.println(json.isGiven() ? line : text);
  }

  /** How many different adapters some tokens choose, if they choose at random. */
  double touched(double tokens) {
    double share = Math.min(1, (double) topK() / adapters);
    return adapters * (1 - Math.pow(1 - share, tokens));
  }

  /** Multiplications and additions a millisecond of one large product, measured now. */
  double multiplicationRate() {
    long size = onGpu() ? 8192 : 1024;
    try (var own = manager();
        var recording = Ops.notRecording()) {
      var a = RandomLlama.normal(own, dtype(), 1, size, size);
      var b = RandomLlama.normal(own, dtype(), 1, size, size);
      double ms =
          median(
              () -> {
                try (var scope = own.newSubManager()) {
                  await(Ops.linear(Ops.alias(scope, a), b, null));
                }
              });
      double rate = 2.0 * size * size * size / ms;
      report("product %d³, %.0f TFLOP/s".formatted(size, rate / 1e9), ms, ms, size);
      return rate;
    }
  }

  /** k as asked for, in a mode. */
  ForwardContext context(ForwardMode mode) {
    return ForwardContext.inference(new RoutingSettings(topK(), 1), Flags.of(mode));
  }

  /** A random model with adapters, to be trained with this dropout. */
  Llama trained(Architecture config, NDManager manager, double dropout) {
    var backend = Backends.of(manager, dtype());
    return RandomLlama.create(config, manager, dtype(), adapters, rank, backend, dropout);
  }

  /** Runs prompts {@code (batch, tokens)} behind nothing; the logits are waited for. */
  static float[] prefill(
      Llama model, KvCache cache, int batch, int tokens, ForwardContext context) {
    try (var scope = model.manager().newSubManager()) {
      var ids = Ops.of(scope, ids(model, batch * tokens), batch, tokens);
      return model.next(ids, cache, context).toFloatArray();
    }
  }

  /** The same, with a cache of its own. */
  static float[] prefill(Llama model, int batch, int tokens, ForwardContext context) {
    try (var manager = model.manager().newSubManager();
        var cache = model.newCache(manager, new int[batch], tokens)) {
      return prefill(model, cache, batch, tokens, context);
    }
  }

  /** Reads a number, and so waits for all that was queued before. */
  static void await(NDArray array) {
    try (var scope = array.getManager().newSubManager();
        var off = Ops.notRecording()) {
      var first = Ops.narrow(Ops.alias(scope, array).reshape(-1), 0, 0, 1);
      if (Float.isNaN(Ops.cast(first, Dtype.F32).toFloatArray()[0])) {
        throw new IllegalStateException("random weights gave NaN");
      }
    }
  }

  /** Median milliseconds of a run in this process, of as many in every other. */
  static double medianOfAll(int repeat, NDArray awaited, Runnable run) {
    var times = new double[repeat];
    for (int i = -3; i < repeat; i++) {
      await(awaited);
      long start = System.nanoTime();
      run.run();
      await(awaited);
      if (i >= 0) {
        times[i] = (System.nanoTime() - start) / 1e6;
      }
    }
    return Turns.median(times);
  }

  static long[] ids(Llama model, int count) {
    return LongStream.range(0, count)
        .map(i -> (i * 7919L + 13) % model.config().vocabSize())
        .toArray();
  }

  /**
   * Sums over the linears of a layer.
   *
   * @param weights out · in
   * @param in of a gate's row
   * @param sides in + out: a rank of A and B
   */
  record Sizes(double weights, double in, double sides) {
    static Sizes of(Architecture config, Projection... linears) {
      double weights = 0;
      double in = 0;
      double sides = 0;
      for (var linear : linears) {
        var shape = config.shape(linear);
        weights += (double) shape[0] * shape[1];
        in += shape[1];
        sides += shape[0] + shape[1];
      }
      return new Sizes(weights, in, sides);
    }
  }

  /** Numbers of a layer's gates, and of A and B of so many of its adapters. */
  double adapterNumbers(Architecture config, double acting) {
    var sizes = Sizes.of(config, Projection.values());
    return adapters * sizes.in() + acting * rank * sizes.sides();
  }

  /** Adapters that act on a token, of those there are. */
  int acting() {
    return Math.min(topK(), adapters);
  }

  /**
   * A random model.
   *
   * @param adapters N; 0 for the base model alone
   * @param more what will be needed beside it; said before it is made if there is no room
   */
  Llama model(Architecture config, NDManager manager, int adapters, MemoryNeed more) {
    var backend = Backends.of(manager, dtype());
    need(config, adapters).and(more).require(backend);
    return RandomLlama.create(config, manager, dtype(), adapters, rank, backend, 0);
  }

  MemoryNeed need(Architecture config, int adapters) {
    long bytes = dtype().bytes();
    return MemoryNeed.NONE
        .and("weights", bytes * MemoryNeed.parameters(config))
        .and("adapters", bytes * MemoryNeed.adapterParameters(config, adapters, rank));
  }

  /** Memory of the keys and values of some sequences. */
  MemoryNeed cache(Architecture config, long sequences, long tokens) {
    return MemoryNeed.NONE.and(
        "a cache of %,d x %,d tokens".formatted(sequences, tokens),
        MemoryNeed.cacheBytes(config, dtype(), sequences, tokens));
  }

  /** What an evaluation records routing with; rows of a batch count as tokens of one sequence. */
  RoutingListener recorder() {
    var names = IntStream.range(0, adapters).mapToObj(i -> "adapter " + i).toList();
    var listener = new RoutingMatrix(names).listener(names.getFirst());
    return (layer, module, rows, tokens, topK, indices, weights) ->
        listener.onRouting(layer, module, 1, rows * tokens, topK, indices, weights);
  }

  /**
   * Median of the wall times of some runs, in milliseconds, after a second of warm-up runs, and as
   * many of them as a third of those measured.
   */
  double median(Runnable run) {
    return medians(run)[0];
  }

  /**
   * As {@link #median}, of several that take turns: what the machine does besides, and at what
   * speed, is then the same for all of them.
   */
  double[] medians(Runnable... runs) {
    return Arrays.stream(turns(runs).wall()).mapToDouble(Turns::median).toArray();
  }

  /** As {@link #medians}, with every turn. */
  Turns turns(Runnable... runs) {
    long warm = System.nanoTime() + runs.length * 1_000_000_000L;
    for (int i = 0;
        i < Math.max(2, repeat.value() / 3) || System.nanoTime() < warm && i < WARM_UP;
        i++) {
      for (var run : runs) {
        run.run();
      }
    }
    var turns =
        new Turns(new double[runs.length][repeat.value()], new double[runs.length][repeat.value()]);
    // a card at its power limit is quicker behind slow work, so nobody is always behind the same
    var order = new ArrayList<>(IntStream.range(0, runs.length).boxed().toList());
    var random = new Random(1);
    for (int i = 0; i < repeat.value(); i++) {
      Collections.shuffle(order, random);
      for (int which : order) {
        long start = System.nanoTime();
        long used = processorNanos();
        runs[which].run();
        turns.wall()[which][i] = (System.nanoTime() - start) / 1e6;
        turns.processor()[which][i] = (processorNanos() - used) / 1e6;
      }
    }
    return turns;
  }

  /**
   * What some runs took that took turns.
   *
   * @param wall milliseconds of each run's each turn
   * @param processor the same of the processors' time, of all threads
   */
  record Turns(double[][] wall, double[][] processor) {
    static double median(double[] values) {
      return Arrays.stream(values).sorted().toArray()[values.length / 2];
    }

    /**
     * Median of what a run took over what the first took in the same turn: other work on the
     * machine comes and goes, and slows both down.
     */
    private static double ratio(double[][] times, int which) {
      return median(
          IntStream.range(0, times[0].length)
              .mapToDouble(i -> times[which][i] / times[0][i])
              .toArray());
    }
  }

  /** Of all threads of this process, in steps of 10 ms; 0 where Java does not know. */
  private static long processorNanos() {
    return ManagementFactory.getOperatingSystemMXBean()
            instanceof com.sun.management.OperatingSystemMXBean system
        ? system.getProcessCpuTime()
        : 0;
  }

  /** Says what a run took, and what of the first one's. */
  void report(String what, Turns turns, int which, double tokens) {
    var line =
        line(what, Turns.median(turns.wall()[which]), Turns.ratio(turns.wall(), which), tokens);
    var text = text(line);
    if (Arrays.stream(turns.processor()[0]).allMatch(each -> each > 0)) { // it is known
      double processor = Turns.median(turns.processor()[which]);
      double ratio = Turns.ratio(turns.processor(), which);
      line.put("processor_ms", processor).put("processor_ratio", ratio);
      text += "   processors %.0f ms, %.3f ×".formatted(processor, ratio);
    }
    print(line, text);
  }

  private static ObjectNode line(String what, double milliseconds, double ratio, double tokens) {
    return line(what)
        .put("ms", milliseconds)
        .put("ratio", ratio)
        .put("tokens_per_second", tokens / milliseconds * 1000);
  }

  private static String text(ObjectNode line) {
    return "%-34s %10.3f ms   %6.3f ×   %,10.1f tokens/s"
        .formatted(
            line.get("what").textValue(),
            line.get("ms").doubleValue(),
            line.get("ratio").doubleValue(),
            line.get("tokens_per_second").doubleValue());
  }

  void report(String what, double milliseconds, double baseline, double tokens) {
    report(what, milliseconds, baseline, tokens, 0);
  }

  /**
   * @param floor milliseconds that the device needs at least, 0 for not known
   */
  void report(String what, double milliseconds, double baseline, double tokens, double floor) {
    var line = line(what, milliseconds, milliseconds / baseline, tokens);
    var text = text(line);
    if (floor > 0) {
      line.put("floor_ms", floor).put("reached", floor / milliseconds);
      text += "   floor %.3f ms, %.0f %%".formatted(floor, 100 * floor / milliseconds);
    }
    print(line, text);
  }
}
