package org.meteora.backend.cuda;

import ai.djl.Device;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
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
import org.meteora.cuda.kernel.MaskedProducts;
import org.meteora.cuda.kernel.SummedProducts;
import org.meteora.cuda.kernel.SummedProducts.Sum;
import org.meteora.cuda.kernel.TrainingKernels;
import org.meteora.cuda.kernel.TrainingKernels.Dropout;
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
 * warmed by itself. With {@code --compare}: how far the gradients are apart of the form that
 * multiplies over all ranks and the one of the chosen adapters alone, each by its own choice, and
 * by the same. With {@code --times} only whole layers are timed.
 */
public final class TrainingLayerBench {
  private static final int RANK = 8;

  private final Cuda cuda;
  private final NDManager manager;
  private final int batch;
  private final int tokens;
  private final int adapters;
  private final int repeat;
  private final Architecture config;

  private TrainingLayerBench(Cuda cuda, NDManager manager, boolean small, int adapters, int repeat)
      throws Exception {
    this.cuda = cuda;
    this.manager = manager;
    this.adapters = adapters;
    this.repeat = repeat;
    batch = small ? 2 : 4;
    tokens = small ? 40 : 2048;
    config =
        LlamaConfig.parse(
            Jsonl.JSON.readTree(
                small
                    ? """
                    {"vocab_size": 64, "hidden_size": 128, "intermediate_size": 384,
                     "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4}\
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
      if (all.contains("--compare")) {
        bench.compare();
      } else {
        bench.run(!all.contains("--times"));
      }
    }
  }

  private static int option(List<String> all, String name, int otherwise) {
    int at = all.indexOf(name);
    return at < 0 ? otherwise : Integer.parseInt(all.get(at + 1));
  }

  private Llama model(int count) {
    return RandomLlama.create(
        config, manager, Dtype.BF16, count, RANK, Backends.of(manager, Dtype.BF16), 0.1);
  }

  private Gradients gradients(Llama model) {
    var sums = new IdentityHashMap<NDArray, NDArray>();
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

  private void run(boolean launches) {
    var model = model(adapters);
    var frozen = model(0);
    long hidden = config.hiddenSize();
    var input = RandomLlama.normal(manager, Dtype.BF16, 1, batch, tokens, hidden);
    var slope = RandomLlama.normal(manager, Dtype.BF16, 1, batch, tokens, hidden);
    var names = new ArrayList<>(List.of("frozen"));
    var work = new ArrayList<Runnable>();
    var gradients = gradients(model);
    var forms = new ArrayList<LlamaTraining>();
    var device = TrainingDevice.of(cuda, Dtype.BF16, manager);
    forms.add(CudaTraining.of(frozen, parameter -> List.of(), Recompute.ALL, device).orElseThrow());
    work.add(() -> layer(forms.getFirst(), input, slope, false));
    for (var form :
        List.of(
            new Form(false, false, false, false),
            new Form(false, false, true, false),
            new Form(false, false, true, true),
            new Form(false, true, true, false),
            new Form(true, false, true, false),
            new Form(true, true, true, false))) {
      if (launches) {
        System.out.println(form.name());
        launches(model, gradients, input, slope, false, form);
        launches(model, gradients, input, slope, true, form);
      }
      var passes = CudaTraining.of(model, gradients, Recompute.ALL, form).orElseThrow();
      forms.add(passes);
      for (boolean drop : new boolean[] {false, true}) {
        names.add(form.name() + (drop ? ", dropout" : ""));
        work.add(() -> layer(passes, input, slope, drop));
      }
    }
    time(names, work);
    forms.forEach(LlamaTraining::close);
  }

  /**
   * Over all ranks, or of the chosen adapters alone, however many they are, the gradients of A and
   * B by themselves; sums of products by one launch where they can be, or each product by cuBLAS;
   * what dropout keeps as bits, or what it leaves.
   */
  private class Form extends ForwardingDevice {
    private final boolean byChoice;
    private final boolean gradientsByChoice;
    private final boolean summed;
    private final boolean masks;

    Form(boolean byChoice, boolean gradientsByChoice, boolean summed, boolean masks) {
      super(TrainingDevice.of(cuda, Dtype.BF16, manager));
      this.byChoice = byChoice;
      this.gradientsByChoice = gradientsByChoice;
      this.summed = summed;
      this.masks = masks;
    }

    String name() {
      return (byChoice ? "chosen adapters alone" : "over all ranks")
          + (gradientsByChoice ? ", gradients by choice" : "")
          + (summed ? "" : ", one by one")
          + (masks ? ", masked" : "");
    }

    @Override
    public boolean canDrop(Sum sum) {
      return summed && super.canDrop(sum);
    }

    @Override
    public boolean canMask(Dtype dtype, int tokens, int in, int ranks, int columns) {
      return masks && super.canMask(dtype, tokens, in, ranks, columns);
    }

    @Override
    public void sum(List<Sum> sums, Dropout dropout) {
      if (summed) {
        super.sum(sums, dropout);
      } else {
        Products.oneByOne(sums, dropout, this::multiply);
      }
    }

    @Override
    public int manyRanks() {
      return byChoice ? 1 : Integer.MAX_VALUE;
    }

    @Override
    public int manyAdapters() {
      return gradientsByChoice ? 1 : Integer.MAX_VALUE;
    }
  }

  private void layer(LlamaTraining passes, NDArray input, NDArray slope, boolean drop) {
    try (var scope = manager.newSubManager();
        var off = Ops.notRecording()) {
      wait(passes.layer(0, Ops.alias(scope, input), slope, context(drop)));
    }
  }

  /** What a form gives: gradients by name, and logits of each linear's gates in order. */
  private record Given(Map<String, NDArray> gradients, List<float[]> logits) {}

  /** Writes down the gates' logits, or puts others in their place. */
  private final class Choosing extends Form {
    private final List<NDArray> logits;
    private final boolean isGiven;
    private int next;

    Choosing(boolean byChoice, boolean summed, List<NDArray> given) {
      super(byChoice, byChoice, summed, summed);
      isGiven = given != null;
      logits = isGiven ? given : new ArrayList<>();
    }

    @Override
    public void maskedRows(MaskedProducts.Input input, Matrix stack, Matrix rows) {
      super.maskedRows(input, stack, rows);
      logitsOf(rows);
    }

    @Override
    public void multiply(Matrix c, Matrix a, Matrix b, boolean add) {
      super.multiply(c, a, b, add);
      logitsOf(c);
    }

    private void logitsOf(Matrix c) {
      for (int linears = 1; linears <= 3; linears++) {
        int ranks = linears * adapters * RANK;
        int stride = (ranks + linears * adapters + 7) / 8 * 8;
        int from = c.columns() == stride ? ranks : 0;
        if (c.stride() == stride && c.columns() - from == stride - ranks) {
          var shape = new long[] {c.rows(), (long) linears * adapters};
          long at = c.address() + (long) from * c.dtype().bytes();
          var view = Ops.view(manager, at, c.dtype(), shape, new long[] {stride, 1});
          if (isGiven) {
            Ops.copy(view, logits.get(next++));
          } else {
            logits.add(Ops.contiguous(view).duplicate());
          }
        }
      }
    }
  }

  private static final List<String> NAMES = List.of("q", "k", "v", "o", "gate", "up", "down");

  private void compare() {
    var model = model(adapters);
    long hidden = config.hiddenSize();
    var input = RandomLlama.normal(manager, Dtype.BF16, 1, batch, tokens, hidden);
    var slope = RandomLlama.normal(manager, Dtype.BF16, 1, batch, tokens, hidden);
    for (boolean drop : new boolean[] {false, true}) {
      System.out.printf("%d adapters, dropout %b%n", adapters, drop);
      var logits = new ArrayList<NDArray>();
      var all = pass(model, input, slope, drop, new Choosing(false, false, null), logits);
      report(
          "all again",
          pass(model, input, slope, drop, new Choosing(false, false, null), null),
          all);
      report(
          "by its own choice",
          pass(model, input, slope, drop, new Choosing(true, true, null), null),
          all);
      report(
          "by the same",
          pass(model, input, slope, drop, new Choosing(true, true, logits), null),
          all);
      report(
          "summed, the same",
          pass(model, input, slope, drop, new Choosing(false, true, logits), null),
          all);
    }
  }

  private Given pass(
      Llama model,
      NDArray input,
      NDArray slope,
      boolean drop,
      Choosing device,
      List<NDArray> keep) {
    var gradients = gradients(model);
    var result = new LinkedHashMap<String, NDArray>();
    try (var passes = CudaTraining.of(model, gradients, Recompute.ALL, device).orElseThrow();
        var off = Ops.notRecording()) {
      result.put("x", passes.layer(0, input, slope, context(drop)));
      int linear = 0;
      for (var each : model.adapted().toList()) {
        var bank = each.bank();
        var name = NAMES.get(linear++);
        result.put(name + ".A", gradients.of(bank.loraA()).getFirst().sum());
        result.put(name + ".B", gradients.of(bank.loraB()).getFirst().sum());
        result.put(name + ".gate", gradients.of(bank.gate()).getFirst().sum());
      }
      wait(result.get("x"));
    }
    if (device.isGiven && device.next != device.logits.size()) {
      throw new IllegalStateException(device.next + " of " + device.logits.size() + " were given");
    }
    if (keep != null) {
      keep.addAll(device.logits);
    }
    var logits = new ArrayList<float[]>();
    for (var group : device.logits) {
      for (long from = 0; from < group.getShape().get(1); from += adapters) {
        var own = Ops.contiguous(Ops.narrow(group, 1, from, adapters));
        logits.add(Ops.cast(own, Dtype.F32).toFloatArray());
      }
    }
    return new Given(result, logits);
  }

  private void report(String what, Given given, Given all) {
    var others = new StringBuilder();
    for (int linear = 0; linear < all.logits.size(); linear++) {
      int count = 0;
      int ties = 0;
      for (int at = 0; at < all.logits.get(linear).length; at += adapters) {
        long ours = best(given.logits.get(linear), at);
        long theirs = best(all.logits.get(linear), at);
        count += ours >> 1 != theirs >> 1 ? 1 : 0;
        ties += theirs & 1;
      }
      double share = 100.0 / (batch * tokens);
      others.append(
          " %s %.2f %% (ties %.2f %%)".formatted(NAMES.get(linear), share * count, share * ties));
    }
    System.out.printf("  %-18s tokens that choose others:%s%n", what, others);
    var distances = new StringBuilder();
    double worst = 0;
    for (var each : all.gradients.entrySet()) {
      var expected = Ops.cast(each.getValue(), Dtype.F32);
      var difference = Ops.cast(given.gradients.get(each.getKey()), Dtype.F32).sub(expected);
      double distance = size(difference) / size(expected);
      worst = Math.max(worst, distance);
      distances.append(" %s %.2g".formatted(each.getKey(), distance));
    }
    System.out.printf("  %-18s gradients differ by at most %.2g:%s%n", what, worst, distances);
  }

  /** The two with the largest logits as a set, and whether a third is as large as the second. */
  private long best(float[] logits, int from) {
    int first = 0;
    for (int i = 1; i < adapters; i++) {
      first = logits[from + i] > logits[from + first] ? i : first;
    }
    int second = first == 0 ? 1 : 0;
    int equal = 0;
    for (int i = 0; i < adapters; i++) {
      if (i != first && i != second && logits[from + i] >= logits[from + second]) {
        equal = logits[from + i] == logits[from + second] ? 1 : 0;
        second = equal == 1 ? Math.min(i, second) : i;
      }
    }
    long pair = (long) Math.min(first, second) << 20 | Math.max(first, second);
    return pair << 1 | equal;
  }

  private static double size(NDArray x) {
    return Math.sqrt(x.mul(x).sum().getFloat());
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
          "%-53s median %7.3f  least %7.3f  %.3f x  %.3f x%n",
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
      Llama model, Gradients gradients, NDArray input, NDArray slope, boolean drop, Form device) {
    var stream = Stream.LIBTORCH;
    var all = new ArrayList<Timed>();
    var timed =
        new ForwardingDevice(device) {
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
                    around(name.name(), 0, 0, () -> kernels.run(name, shape, argument, stream)),
                cuda.sharedMemory());
          }

          @Override
          public void sum(List<Sum> sums, Dropout dropout) {
            if (!device.summed || !SummedProducts.take(cuda, sums)) {
              Products.oneByOne(sums, dropout, this::multiply);
              return;
            }
            double work = 0;
            double bytes = 0;
            for (var sum : sums) {
              bytes += 2.0 * sum.y().rows() * sum.y().columns();
              for (var term : sum.terms()) {
                double k = sum.y().innerOf(term.a(), term.b());
                work += 2.0 * sum.y().rows() * sum.y().columns() * k;
                bytes += 2.0 * k * (sum.y().rows() + sum.y().columns());
              }
            }
            around("sums " + sums.size(), work, bytes, () -> device.sum(sums, dropout));
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
