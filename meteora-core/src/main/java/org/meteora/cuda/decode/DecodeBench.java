package org.meteora.cuda.decode;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Optional;
import org.meteora.cuda.decode.DecodeModel.Layer;
import org.meteora.cuda.decode.DecodeModel.Linear;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.DeviceMemory;
import org.meteora.cuda.driver.Event;
import org.meteora.cuda.driver.Kernel;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.driver.Struct;
import org.meteora.cuda.kernel.AdapterMemory;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.cuda.kernel.MatrixVector;
import org.meteora.tensor.Dtype;

/**
 * Times decode steps of {@link DecodeEngine} on random weights of Llama-3-8B's shapes, made on the
 * device, beside the same step without adapters and the time that reading every needed byte once
 * would take at the bandwidth measured in the same run.
 */
public final class DecodeBench implements AutoCloseable {
  /** A model's sizes and its adapters'. */
  public record Shape(
      int hidden,
      int heads,
      int kvHeads,
      int headDim,
      int intermediate,
      int vocab,
      int layers,
      int adapters,
      int rank,
      int topK) {
    public static Shape llama3(int layers, int adapters, int rank, int topK) {
      return new Shape(4096, 32, 8, 128, 14336, 128256, layers, adapters, rank, topK);
    }
  }

  /** One measurement; milliseconds are medians of a step. */
  public record Result(
      int batch,
      int context,
      double base,
      double meteora,
      double floorBase,
      double floorMeteora,
      long scratchBytes) {}

  private final Cuda cuda;
  private final Shape shape;
  private final Stream stream;
  private final Kernels kernels;
  private final List<DeviceMemory> memory = new ArrayList<>();
  private final DecodeModel model;
  private int seed = 1;

  public DecodeBench(Cuda cuda, Shape shape) {
    this.cuda = cuda;
    this.shape = shape;
    this.stream = Stream.create(cuda);
    this.kernels =
        Kernels.of(cuda, Kernels.Constants.ofLayers(Dtype.BF16, shape.topK(), shape.adapters()));
    var q = shape.heads() * shape.headDim();
    var kv = shape.kvHeads() * shape.headDim();
    var h = shape.hidden();
    var inter = shape.intermediate();
    var layers = new ArrayList<Layer>();
    for (var i = 0; i < shape.layers(); i++) {
      layers.add(
          new Layer(
              norm(),
              norm(),
              linear(q, h),
              linear(kv, h),
              linear(kv, h),
              linear(h, q),
              linear(inter, h),
              linear(inter, h),
              linear(h, inter)));
    }
    var frequencies = new float[shape.headDim() / 2];
    for (var i = 0; i < frequencies.length; i++) {
      frequencies[i] = (float) Math.pow(500000, -2.0 * i / shape.headDim());
    }
    var table = cuda.upload(frequencies, stream);
    memory.add(table);
    this.model =
        new DecodeModel(
            Dtype.BF16,
            h,
            shape.heads(),
            shape.kvHeads(),
            shape.headDim(),
            inter,
            shape.vocab(),
            1e-5f,
            table.address(),
            1,
            random((long) shape.vocab() * h, 1, 0),
            norm(),
            random((long) shape.vocab() * h, (float) Math.sqrt(3.0 / h), 0),
            shape.topK(),
            layers);
    stream.synchronize();
  }

  private long norm() {
    return random(shape.hidden(), 0.1f, 1);
  }

  private Linear linear(int out, int in) {
    var scale = (float) Math.sqrt(3.0 / in);
    Optional<AdapterMemory> adapters = Optional.empty();
    if (shape.adapters() > 0) {
      var n = shape.adapters();
      var ranks = new int[n];
      Arrays.fill(ranks, shape.rank());
      var scales = new float[n];
      Arrays.fill(scales, 2);
      var all = (long) n * shape.rank();
      adapters =
          Optional.of(
              new AdapterMemory(
                  random((long) n * in, scale, 0),
                  random(all * in, scale, 0),
                  random(all * out, 0.05f, 0),
                  ranks,
                  scales));
    }
    return new Linear(random((long) out * in, scale, 0), 0, out, in, adapters);
  }

  private long random(long count, float scale, float shift) {
    var piece = cuda.allocate(2 * count);
    memory.add(piece);
    var argument =
        new Struct().add(piece.address()).add(count).add(seed++).add(scale).add(shift).add(0);
    kernels.get("fill_random").launch(1056, 1, 1, 256, 0, false, argument).on(stream);
    return piece.address();
  }

  /** Device memory read, in bytes a second: the best of several passes over 4 GB. */
  public double readBandwidth() {
    return bandwidth(8);
  }

  private double bandwidth(int passes) {
    var bytes = 4L << 30;
    var best = 0.0;
    try (var from = cuda.allocate(bytes);
        var out = cuda.allocate(16);
        var begin = new Event();
        var end = new Event()) {
      var fill = new Struct().add(from.address()).add(bytes / 2).add(7).add(1f).add(0f).add(0);
      kernels.get("fill_random").launch(1056, 1, 1, 256, 0, false, fill).on(stream);
      var read = new Struct().add(from.address()).add(out.address()).add(bytes / 16);
      var launch =
          kernels.get("read_all").launch(cuda.multiprocessors() * 4, 1, 1, 512, 0, false, read);
      for (var i = 0; i < passes; i++) {
        begin.record(stream);
        launch.on(stream);
        end.record(stream);
        best = Math.max(best, bytes / end.millisSince(begin) * 1e3);
      }
    }
    return best;
  }

  /**
   * Bytes a step must read at least: weights, KV cache, and of the adapters the gates and the rows
   * that can be chosen.
   */
  private long bytes(int batch, int context, boolean adapters) {
    var total = 2L * shape.vocab() * shape.hidden();
    for (var layer : model.layers()) {
      for (var l : layer.linears()) {
        total += 2L * l.in() * l.out();
        if (adapters && l.adapters().isPresent()) {
          // chosen by at least one of `batch` tokens, on average, when each picks k of N at random
          var n = l.adapters().get().count();
          var chosen = n * (1 - Math.pow(1 - (double) shape.topK() / n, batch));
          total += 2L * n * l.in() + (long) (2 * chosen * shape.rank() * (l.in() + l.out()));
        }
      }
      total += 2L * 2 * batch * context * shape.kvHeads() * shape.headDim();
    }
    return total;
  }

  /** Median milliseconds of a step of {@code m} at about {@code context} cached tokens. */
  double time(
      DecodeModel m,
      int batch,
      int context,
      int steps,
      MatrixVector.Tuning tuning,
      boolean graphs,
      long[] scratch) {
    var maxLength = context + steps + 16;
    var layers = shape.layers();
    var each = (long) batch * shape.kvHeads() * maxLength * shape.headDim();
    var before = memory.size();
    var keys = new long[layers];
    var values = new long[layers];
    for (var i = 0; i < layers; i++) {
      keys[i] = random(each, 1, 0);
      values[i] = random(each, 1, 0);
    }
    stream.synchronize();
    var times = new double[steps];
    try (var engine =
            new DecodeEngine(cuda, m, new KvMemory(keys, values, batch, maxLength), batch, tuning);
        var begin = new Event();
        var end = new Event()) {
      engine.useGraphs(graphs);
      scratch[0] = engine.scratchBytes();
      var slots = new int[batch];
      var lengths = new int[batch];
      var tokens = new int[batch];
      for (var i = 0; i < batch; i++) {
        slots[i] = i;
        lengths[i] = context;
        tokens[i] = 1000 + i;
      }
      engine.rows(slots, lengths, new int[batch]);
      engine.step(tokens);
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
      while (memory.size() > before) {
        memory.removeLast().close();
      }
    }
    Arrays.sort(times);
    return times[steps / 2];
  }

  private static final List<String> PHASES =
      List.of(
          "q k v",
          "rope, cache",
          "attention",
          "o",
          "add, norm",
          "gate up",
          "silu",
          "down",
          "add, norm");

  /**
   * Microseconds of each launch of a layer, from graphs that hold that launch of all layers and
   * nothing else.
   */
  private double[] profile(DecodeModel m, int batch, int context, MatrixVector.Tuning tuning) {
    var each = (long) batch * shape.kvHeads() * (context + 64) * shape.headDim();
    var before = memory.size();
    var keys = new long[shape.layers()];
    var values = new long[shape.layers()];
    for (var i = 0; i < keys.length; i++) {
      keys[i] = random(each, 1, 0);
      values[i] = random(each, 1, 0);
    }
    stream.synchronize();
    var micros = new double[PHASES.size() + 1];
    try (var engine =
            new DecodeEngine(
                cuda, m, new KvMemory(keys, values, batch, context + 64), batch, tuning);
        var begin = new Event();
        var end = new Event()) {
      var slots = new int[batch];
      var lengths = new int[batch];
      for (var i = 0; i < batch; i++) {
        slots[i] = i;
        lengths[i] = context;
      }
      engine.rows(slots, lengths, new int[batch]);
      engine.step(new int[batch]);
      var all = engine.launches();
      for (var phase = 0; phase < micros.length; phase++) {
        var some = new ArrayList<Kernel.Launch>();
        if (phase == PHASES.size()) {
          some.add(all.get(all.size() - 3));
        } else {
          for (var layer = 0; layer < shape.layers(); layer++) {
            some.add(all.get(1 + layer * PHASES.size() + phase));
          }
        }
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
          micros[phase] = times[times.length / 2] * 1e3 / some.size();
        }
      }
    } finally {
      while (memory.size() > before) {
        memory.removeLast().close();
      }
    }
    return micros;
  }

  private void profiles() {
    var standard = MatrixVector.Tuning.standard();
    var apart =
        new MatrixVector.Tuning(
            standard.sharedBytes(),
            standard.inputBytes(),
            false,
            standard.gatesFirst(),
            standard.rideBytes());
    System.out.println("us a launch                " + String.join(" | ", PHASES) + " | head");
    for (var batch : new int[] {1, 4, 16}) {
      for (var overlap : new boolean[] {true, false}) {
        for (var m : List.of(model.base(), model)) {
          var line = new StringBuilder();
          for (var v : profile(m, batch, 512, overlap ? standard : apart)) {
            line.append(String.format(Locale.ROOT, " %7.2f", v));
          }
          System.out.printf(
              "batch %2d %s %s%s%n",
              batch, overlap ? "overlap" : "apart  ", m == model ? "MeteoRA" : "base   ", line);
        }
      }
    }
  }

  /** Base and MeteoRA at one batch size. */
  public Result measure(int batch, int context, int steps, double bandwidth) {
    var scratch = new long[1];
    var tuning = MatrixVector.Tuning.standard();
    var base = time(model.base(), batch, context, steps, tuning, true, scratch);
    var meteora = time(model, batch, context, steps, tuning, true, scratch);
    return new Result(
        batch,
        context,
        base,
        meteora,
        bytes(batch, context, false) / bandwidth * 1e3,
        bytes(batch, context, true) / bandwidth * 1e3,
        scratch[0]);
  }

  @Override
  public void close() {
    memory.forEach(DeviceMemory::close);
    stream.close();
  }

  /** Prints the table; {@code --variants} adds what each design choice brings. */
  public static void main(String[] args) {
    var cuda = Cuda.device(0);
    try (var bench = new DecodeBench(cuda, Shape.llama3(32, 28, 8, 2))) {
      var bandwidth = bench.readBandwidth();
      System.out.printf(
          Locale.ROOT,
          "%s, %d multiprocessors, reads %.2f TB/s%n",
          cuda.name(),
          cuda.multiprocessors(),
          bandwidth / 1e12);
      if (Arrays.asList(args).contains("--profile")) {
        bench.profiles();
      }
      System.out.println(
          "batch  base ms  MeteoRA ms  ratio  floor base  floor MeteoRA  of floor  scratch MiB");
      for (var batch : new int[] {1, 2, 4, 8, 16}) {
        var r = bench.measure(batch, 512, 40, bandwidth);
        System.out.printf(
            Locale.ROOT,
            "%5d  %7.3f  %10.3f  %5.3f  %10.3f  %13.3f  %7.0f%%  %11d%n",
            batch,
            r.base(),
            r.meteora(),
            r.meteora() / r.base(),
            r.floorBase(),
            r.floorMeteora(),
            100 * r.floorMeteora() / r.meteora(),
            r.scratchBytes() >> 20);
      }
      if (Arrays.asList(args).contains("--variants")) {
        bench.variants();
      }
    }
  }

  private void variants() {
    var scratch = new long[1];
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
                    standard.rideBytes()),
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
                    standard.rideBytes()),
                true),
            new Variant(
                "shared 160 KiB",
                new MatrixVector.Tuning(
                    160 << 10,
                    standard.inputBytes(),
                    true,
                    standard.gatesFirst(),
                    standard.rideBytes()),
                true),
            new Variant(
                "shared 220 KiB",
                new MatrixVector.Tuning(
                    220 << 10,
                    standard.inputBytes(),
                    true,
                    standard.gatesFirst(),
                    standard.rideBytes()),
                true),
            new Variant(
                "input 36 KiB",
                new MatrixVector.Tuning(
                    standard.sharedBytes(),
                    36 << 10,
                    true,
                    standard.gatesFirst(),
                    standard.rideBytes()),
                true),
            new Variant(
                "input 114 KiB",
                new MatrixVector.Tuning(
                    standard.sharedBytes(),
                    114 << 10,
                    true,
                    standard.gatesFirst(),
                    standard.rideBytes()),
                true));
    System.out.println(
        "variant              batch 1  batch 4  batch 16   base 1   base 4  base 16");
    for (var v : all) {
      System.out.printf(
          Locale.ROOT,
          "%-20s %7.3f  %7.3f  %8.3f  %7.3f  %7.3f  %7.3f%n",
          v.name(),
          time(model, 1, 512, 24, v.tuning(), v.graphs(), scratch),
          time(model, 4, 512, 24, v.tuning(), v.graphs(), scratch),
          time(model, 16, 512, 24, v.tuning(), v.graphs(), scratch),
          time(model.base(), 1, 512, 24, v.tuning(), v.graphs(), scratch),
          time(model.base(), 4, 512, 24, v.tuning(), v.graphs(), scratch),
          time(model.base(), 16, 512, 24, v.tuning(), v.graphs(), scratch));
    }
  }
}
