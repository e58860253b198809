package org.meteora.backend.cuda;

import ai.djl.Device;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.IdentityHashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.stream.IntStream;
import org.meteora.backend.Backends;
import org.meteora.cuda.driver.Cublas.Matrix;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Event;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.cuda.kernel.TrainingKernels;
import org.meteora.io.Jsonl;
import org.meteora.model.Architecture;
import org.meteora.model.Gradients;
import org.meteora.model.Llama;
import org.meteora.model.LlamaTraining;
import org.meteora.model.LlamaTraining.Recompute;
import org.meteora.model.RandomLlama;
import org.meteora.model.llama.LlamaConfig;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardMode;
import org.meteora.moe.RoutingSettings;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * Times each product and kernel of a training layer of Llama-3-8B's shapes on a GPU, and the layer
 * beside the frozen one: {@code [--small] [--repeat N] [--adapters N]}. A card that works at its
 * power limit is slower or quicker by what it did before, so turns are in random order, and each is
 * warmed by itself.
 */
public final class TrainingLayerBench {
  private final Cuda cuda;
  private final NDManager manager;
  private final int batch;
  private final int tokens;
  private final int adapters;
  private final int repeat;
  private final Architecture config;
  private final Map<NDArray, NDArray> sums = new IdentityHashMap<>();

  private TrainingLayerBench(Cuda cuda, NDManager manager, boolean small, int adapters, int repeat)
      throws Exception {
    this.cuda = cuda;
    this.manager = manager;
    this.adapters = adapters;
    this.repeat = repeat;
    batch = small ? 2 : 4;
    tokens = small ? 8 : 2048;
    config =
        LlamaConfig.parse(
            Jsonl.JSON.readTree(
                small
                    ? """
                    {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96,
                     "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}\
                    """
                    : """
                    {"vocab_size": 1024, "hidden_size": 4096, "intermediate_size": 14336,
                     "num_hidden_layers": 1, "num_attention_heads": 32, "num_key_value_heads": 8,
                     "rope_theta": 500000.0}\
                    """),
            "bench");
  }

  public static void main(String[] arguments) throws Exception {
    var all = List.of(arguments);
    boolean small = all.contains("--small");
    try (var manager = Devices.newManager(Device.gpu(0))) {
      var bench =
          new TrainingLayerBench(
              Cuda.device(0),
              manager,
              small,
              option(all, "--adapters", 28),
              option(all, "--repeat", 15));
      bench.run();
    }
  }

  private static int option(List<String> all, String name, int otherwise) {
    int at = all.indexOf(name);
    return at < 0 ? otherwise : Integer.parseInt(all.get(at + 1));
  }

  private Llama model(int count) {
    return RandomLlama.create(
        config, manager, Dtype.BF16, count, 8, Backends.of(manager, Dtype.BF16), 0.1);
  }

  private Gradients gradients(Llama model) {
    model
        .adapted()
        .forEach(
            linear -> {
              for (var each :
                  List.of(linear.bank().gate(), linear.bank().loraA(), linear.bank().loraB())) {
                sums.put(each, Ops.zeros(manager, Dtype.F32, each.getShape().getShape()));
              }
            });
    return parameter ->
        sums.containsKey(parameter)
            ? List.of(new Gradients.Part(sums.get(parameter), -1, 0, 0))
            : List.of();
  }

  private static ForwardContext context(boolean drop) {
    return ForwardContext.inference(new RoutingSettings(2, 1), Flags.of(ForwardMode.AUTO))
        .forTraining(drop);
  }

  private void run() {
    var model = model(adapters);
    var frozen = model(0);
    var gradients = gradients(model);
    var device = TrainingDevice.of(cuda, Dtype.BF16, manager);
    long hidden = config.hiddenSize();
    var input = RandomLlama.normal(manager, Dtype.BF16, 1, batch, tokens, hidden);
    var slope = RandomLlama.normal(manager, Dtype.BF16, 1, batch, tokens, hidden);
    try (var passes = CudaTraining.of(model, gradients, Recompute.ALL, device).orElseThrow();
        var base =
            CudaTraining.of(frozen, parameter -> List.of(), Recompute.ALL, device).orElseThrow()) {
      for (boolean drop : new boolean[] {false, true}) {
        launches(model, gradients, input, slope, drop);
      }
      time(
          List.of("frozen", "MeteoRA", "MeteoRA, dropout"),
          List.of(
              () -> layer(base, input, slope, false),
              () -> layer(passes, input, slope, false),
              () -> layer(passes, input, slope, true)));
    }
  }

  private void layer(LlamaTraining passes, NDArray input, NDArray slope, boolean drop) {
    try (var scope = manager.newSubManager();
        var off = Ops.notRecording()) {
      wait(passes.layer(0, Ops.alias(scope, input), slope, context(drop)));
    }
  }

  private static void wait(NDArray slope) {
    var first = Ops.narrow(slope.reshape(-1), 0, 0, 1);
    if (Float.isNaN(Ops.cast(first, Dtype.F32).toFloatArray()[0])) {
      throw new IllegalStateException("NaN");
    }
  }

  /** Medians and smallest of wall times that take turns. */
  private void time(List<String> names, List<Runnable> work) {
    for (int i = 0; i < 3; i++) {
      work.forEach(Runnable::run);
    }
    var times = new double[work.size()][repeat];
    var order = new ArrayList<>(IntStream.range(0, times.length).boxed().toList());
    var random = new Random(1);
    for (int turn = 0; turn < repeat; turn++) {
      Collections.shuffle(order, random);
      for (int i : order) {
        for (int again = 0; again < 3; again++) {
          work.get(i).run();
        }
        long start = System.nanoTime();
        for (int again = 0; again < 2; again++) {
          work.get(i).run();
        }
        times[i][turn] = (System.nanoTime() - start) / 2e6;
      }
    }
    double base = median(times[0]);
    for (int i = 0; i < times.length; i++) {
      System.out.printf(
          "%-44s median %7.3f  least %7.3f  %.3f x  %.3f x%n",
          names.get(i),
          median(times[i]),
          Arrays.stream(times[i]).min().getAsDouble(),
          median(times[i]) / base,
          Arrays.stream(times[i]).min().getAsDouble()
              / Arrays.stream(times[0]).min().getAsDouble());
    }
  }

  private static double median(double[] values) {
    return Arrays.stream(values).sorted().toArray()[values.length / 2];
  }

  /** One launch. */
  private record Timed(String name, double work, double bytes, Event begin, Event end) {}

  /** Microseconds of each launch of a layer, medians. */
  private void launches(
      Llama model, Gradients gradients, NDArray input, NDArray slope, boolean drop) {
    var device = TrainingDevice.of(cuda, Dtype.BF16, manager);
    var stream = Stream.of(0);
    var all = new ArrayList<Timed>();
    var timed =
        new TrainingDevice() {
          private void around(String name, double work, double bytes, Runnable launch) {
            var begin = new Event();
            begin.record(stream);
            launch.run();
            var end = new Event();
            end.record(stream);
            all.add(new Timed(name, work, bytes, begin, end));
          }

          @Override
          public TrainingKernels kernels(int topK, int adapters) {
            var kernels = Kernels.of(cuda, Kernels.Constants.ofLayers(Dtype.BF16, topK, adapters));
            return new TrainingKernels(
                (name, shape, argument) ->
                    around(name.name(), 0, 0, () -> kernels.run(name, shape, argument, stream)));
          }

          @Override
          public void multiply(Matrix c, Matrix a, Matrix b, boolean add) {
            int k = c.innerOf(a, b);
            double bytes =
                (double) c.rows() * c.columns() * c.dtype().bytes() * (add ? 2 : 1)
                    + 2.0 * k * (c.rows() + c.columns());
            around(
                "%s%s %d x %d x %d %s%s"
                    .formatted(
                        a.isTransposed() ? "T" : "N",
                        b.isTransposed() ? "T" : "N",
                        c.rows(),
                        c.columns(),
                        k,
                        c.dtype().label(),
                        add ? " +=" : ""),
                2.0 * c.rows() * c.columns() * k,
                bytes,
                () -> device.multiply(c, a, b, add));
          }

          @Override
          public void clear(long address, long bytes) {
            device.clear(address, bytes);
          }

          @Override
          public void upload(long to, MemorySegment from) {
            device.upload(to, from);
          }

          @Override
          public void download(MemorySegment to, long from) {
            device.download(to, from);
          }

          @Override
          public void makeCurrent() {
            device.makeCurrent();
          }

          @Override
          public long freeBytes() {
            return device.freeBytes();
          }
        };
    try (var passes = CudaTraining.of(model, gradients, Recompute.ALL, timed).orElseThrow()) {
      for (int i = 0; i < 3; i++) {
        layer(passes, input, slope, drop);
      }
      all.clear();
      int times = Math.max(1, repeat / 2);
      for (int i = 0; i < times; i++) {
        layer(passes, input, slope, drop);
      }
      int count = all.size() / times;
      System.out.println(drop ? "launches, dropout" : "launches");
      var groups = new LinkedHashMap<String, double[]>();
      for (int i = 0; i < count; i++) {
        var micros = new double[times];
        for (int turn = 0; turn < times; turn++) {
          var each = all.get(turn * count + i);
          micros[turn] = 1e3 * each.end.millisSince(each.begin);
        }
        var each = all.get(i);
        double us = median(micros);
        double least = Math.max(each.work / 640e6, each.bytes / 2.95e6);
        System.out.printf(
            "%4d %-48s %8.1f us  at least %7.1f  %5.0f TFLOP/s%n",
            i, each.name, us, least, each.work / us / 1e6);
        var kind = each.work == 0 ? each.name : "products";
        var sum = groups.computeIfAbsent(kind, key -> new double[2]);
        sum[0] += us;
        sum[1] += least;
      }
      groups.forEach(
          (name, sum) ->
              System.out.printf("   %-49s %8.1f us  at least %7.1f%n", name, sum[0], sum[1]));
      all.forEach(
          each -> {
            each.begin.close();
            each.end.close();
          });
    }
  }
}
