package org.meteora.cuda.kernel;

import java.lang.foreign.Arena;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.stream.IntStream;
import org.meteora.cuda.driver.Cublas;
import org.meteora.cuda.driver.Cublas.Matrix;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.DeviceMemory;
import org.meteora.cuda.driver.Event;
import org.meteora.cuda.driver.Stream;
import org.meteora.nn.Scores;
import org.meteora.tensor.Dtype;

/**
 * Times the parts of a prefill's gated linears of Llama-3-8B's shapes on random weights: the base's
 * products, adapters in the masked form and in the grouped one, and compares what the two give.
 * Arguments: numbers of tokens, then {@code --adapters} and their numbers.
 */
final class GroupedPrefillBench {
  private static final Dtype DTYPE = Dtype.BF16;
  private static final int RANK = 8;
  private static final int REPEATS = 10;

  /** Linears with one input. */
  private record Group(String name, int in, int[] outs) {}

  private static List<Group> groups() {
    int part = Integer.getInteger("part", 1);
    int hidden = 4096 / part;
    int inner = 14336 / part;
    return List.of(
        new Group("qkv", hidden, new int[] {hidden, hidden / 4, hidden / 4}),
        new Group("o", hidden, new int[] {hidden}),
        new Group("gate/up", hidden, new int[] {inner, inner}),
        new Group("down", inner, new int[] {hidden}));
  }

  private final Cuda cuda = Cuda.device(0);
  private final Stream stream;
  private final Cublas blas;
  private final byte[] numbers = new byte[1 << 22];
  private final Map<String, Double> totals = new LinkedHashMap<>();

  private GroupedPrefillBench() {
    cuda.makeCurrent();
    stream = Stream.create(cuda);
    blas = new Cublas(cuda, stream);
    var random = new Random(1);
    for (int i = 0; i < numbers.length; i += 2) {
      int bits = Float.floatToRawIntBits((float) random.nextGaussian());
      numbers[i] = (byte) (bits >> 16);
      numbers[i + 1] = (byte) (bits >> 24);
    }
  }

  /** Normal numbers of variance 1. */
  private DeviceMemory random(long elements) {
    long bytes = 2 * elements;
    var memory = cuda.allocate(bytes);
    try (var arena = Arena.ofConfined()) {
      var from = arena.allocateFrom(ValueLayout.JAVA_BYTE, numbers);
      // shifted each time, so that rows are not alike
      for (long at = 0, shift = 0; at < bytes; at += numbers.length / 2, shift += 4114) {
        long count = Math.min(bytes - at, numbers.length / 2);
        cuda.toDevice(
            memory.address() + at,
            from.asSlice(shift % (numbers.length / 2) / 16 * 16),
            count,
            stream);
      }
      stream.synchronize();
    }
    return memory;
  }

  /** Microseconds, the median of five. */
  private double time(Runnable work) {
    work.run();
    stream.synchronize();
    try (var graph = stream.capture(() -> IntStream.range(0, REPEATS).forEach(i -> work.run()));
        var begin = new Event();
        var end = new Event()) {
      var times = new double[5];
      graph.launch(stream);
      for (int i = 0; i < times.length; i++) {
        begin.record(stream);
        graph.launch(stream);
        end.record(stream);
        times[i] = 1000 * end.millisSince(begin) / REPEATS;
      }
      Arrays.sort(times);
      return times[times.length / 2];
    }
  }

  private double report(String group, String what, Runnable work) {
    double micros = time(work);
    totals.merge(what, micros, Double::sum);
    System.out.printf("  %-8s %-34s %8.1f us%n", group, what, micros);
    return micros;
  }

  private float[] floats(long address, int count) {
    var bytes = cuda.download(address, 2L * count, stream);
    var values = new float[count];
    for (int i = 0; i < count; i++) {
      values[i] = Float.intBitsToFloat((bytes[2 * i] & 255) << 16 | (bytes[2 * i + 1] & 255) << 24);
    }
    return values;
  }

  /** The largest difference over the root of the mean square. */
  private double difference(long a, long b, int count) {
    var left = floats(a, count);
    var right = floats(b, count);
    double largest = 0;
    double squares = 0;
    for (int i = 0; i < count; i++) {
      largest = Math.max(largest, Math.abs(left[i] - right[i]));
      squares += (double) left[i] * left[i];
      if (Float.isNaN(right[i])) {
        return Double.NaN;
      }
    }
    return largest / Math.sqrt(squares / count);
  }

  private void run(Group group, int tokens, int n) {
    int linears = group.outs.length;
    int ranks = n * RANK;
    var memory = new ArrayList<DeviceMemory>();
    try {
      var x = add(memory, random((long) tokens * group.in));
      int columns = AdapterKernels.columns(linears * (n + ranks));
      var stack = add(memory, random((long) columns * group.in));
      var rows = add(memory, random((long) tokens * columns));
      var targets = new ArrayList<AdapterKernels.Target>();
      var w = new long[linears];
      var b = new long[linears];
      var y = new long[linears];
      var other = new long[linears];
      var sizes = new int[n];
      var scales = new float[n];
      Arrays.fill(sizes, RANK);
      Arrays.fill(scales, 2);
      for (int i = 0; i < linears; i++) {
        int out = group.outs[i];
        w[i] = add(memory, random((long) out * group.in));
        b[i] = add(memory, random((long) out * ranks));
        y[i] = add(memory, random((long) tokens * out));
        other[i] = add(memory, random((long) tokens * out));
        targets.add(
            new AdapterKernels.Target(
                new AdapterMemory(
                    stack + 2L * group.in * (linears * ranks + i * n),
                    stack + 2L * group.in * i * ranks,
                    b[i],
                    sizes,
                    scales),
                out));
      }
      try (var kernels =
          new AdapterKernels(cuda, DTYPE, Scores.PRODUCT, 2, group.in, targets, stream)) {
        var input = Matrix.of(x, tokens, group.in, DTYPE);
        var gates =
            Matrix.of(
                stack + 2L * group.in * linears * ranks,
                columns - linears * ranks,
                group.in,
                DTYPE);
        var logits = Matrix.of(rows, tokens, gates.rows(), DTYPE);
        var all = Matrix.of(stack, columns, group.in, DTYPE);
        var z = Matrix.of(rows, tokens, columns, DTYPE);
        var pass =
            new GroupedPrefill.Pass(
                rows,
                gates.rows(),
                x,
                tokens,
                null,
                1,
                add(memory, cuda.allocate(kernels.grouped().scratchBytes(tokens))));
        var prefill = new PrefillKernels(cuda, DTYPE);
        Runnable base = () -> base(group, input, w, y, false);
        Runnable stacked = () -> blas.multiply(z, input, all.transpose(), false);
        Runnable scale = () -> kernels.scaleForPrefill(rows, x, tokens, null, 1, stream);
        Runnable zb =
            () -> {
              for (int i = 0; i < linears; i++) {
                blas.multiply(
                    Matrix.of(y[i], tokens, group.outs[i], DTYPE),
                    new Matrix(rows + 2L * i * ranks, tokens, ranks, columns, DTYPE),
                    Matrix.of(b[i], ranks, group.outs[i], DTYPE),
                    false);
              }
            };
        Runnable baseAdds = () -> base(group, input, w, y, true);
        Runnable gatesOnly = () -> blas.multiply(logits, input, gates.transpose(), false);
        Runnable silu =
            () -> prefill.siluUp(y[0], y[1], other[0], (long) tokens * group.outs[0], stream);
        boolean isMlp = group.name.equals("gate/up");
        String name = group.name;
        report(name, "base", base);
        if (isMlp) {
          report(name, "silu", silu);
        }
        report(name, "x [A gates]", stacked);
        report(name, "mask", scale);
        report(name, "z B", zb);
        report(name, "base += ", baseAdds);
        report(
            name,
            "MASKED",
            () -> {
              stacked.run();
              scale.run();
              zb.run();
              baseAdds.run();
              if (isMlp) {
                silu.run();
              }
            });
        report(name, "x gates", gatesOnly);
        gatesOnly.run();
        report(name, "route, sort, z", () -> kernels.grouped().group(pass, stream));
        report(name, "sort", () -> kernels.grouped().sort(pass, stream));
        report(name, "z", () -> kernels.grouped().z(pass, stream));
        report(name, "add", () -> kernels.grouped().add(pass, other, stream));
        report(
            name,
            "GROUPED",
            () -> {
              gatesOnly.run();
              kernels.grouped().group(pass, stream);
              kernels.grouped().add(pass, y, stream);
              baseAdds.run();
              if (isMlp) {
                silu.run();
              }
            });
        var same =
            new GroupedPrefill.Pass(
                rows + 2L * linears * ranks, columns, x, tokens, null, 1, pass.scratch());
        compare(group, tokens, kernels, same, y, other, stacked, scale, zb);
      }
    } finally {
      stream.synchronize();
      memory.forEach(DeviceMemory::close);
    }
  }

  /** Both forms' adapters by themselves. */
  private void compare(
      Group group,
      int tokens,
      AdapterKernels kernels,
      GroupedPrefill.Pass same,
      long[] y,
      long[] other,
      Runnable stacked,
      Runnable scale,
      Runnable zb) {
    stacked.run();
    kernels.grouped().group(same, stream); // its logits, for the others are rounded in other ways
    scale.run();
    zb.run();
    kernels.grouped().add(same, other, stream);
    stream.synchronize();
    for (int i = 0; i < y.length; i++) {
      int count = Math.min(tokens * group.outs[i], 1 << 21);
      long from = 2L * ((long) tokens * group.outs[i] - count);
      System.out.printf(
          "  %-8s linear %d: largest difference %.4f of the root of the mean square%n",
          group.name, i, difference(y[i] + from, other[i] + from, count));
    }
  }

  private void base(Group group, Matrix input, long[] w, long[] y, boolean add) {
    for (int i = 0; i < y.length; i++) {
      blas.multiply(
          Matrix.of(y[i], input.rows(), group.outs[i], DTYPE),
          input,
          Matrix.of(w[i], group.outs[i], group.in, DTYPE).transpose(),
          add);
    }
  }

  private static long add(List<DeviceMemory> memory, DeviceMemory more) {
    memory.add(more);
    return more.address();
  }

  /** See the class. */
  public static void main(String[] arguments) {
    var all = List.of(arguments);
    int split = all.indexOf("--adapters");
    var bench = new GroupedPrefillBench();
    for (var tokens : all.subList(0, split)) {
      for (var n : all.subList(split + 1, all.size())) {
        System.out.printf("%s tokens, %s adapters%n", tokens, n);
        bench.totals.clear();
        for (var group : groups()) {
          bench.run(group, Integer.parseInt(tokens), Integer.parseInt(n));
        }
        bench.totals.forEach(
            (what, micros) -> System.out.printf("  a layer  %-34s %8.1f us%n", what, micros));
      }
    }
  }
}
