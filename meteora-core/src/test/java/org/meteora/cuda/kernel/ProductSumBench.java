package org.meteora.cuda.kernel;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.meteora.cuda.driver.Cublas;
import org.meteora.cuda.driver.Cublas.Matrix;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.DeviceMemory;
import org.meteora.cuda.driver.Event;
import org.meteora.cuda.kernel.SummedProducts.Sum;
import org.meteora.cuda.kernel.SummedProducts.Term;
import org.meteora.cuda.kernel.SummedProducts.Tiles;
import org.meteora.cuda.kernel.TrainingKernels.Dropout;
import org.meteora.tensor.Dtype;

/**
 * Times the sums of products of a layer of Llama-3-8B's shapes with 28 adapters of rank 8, forward
 * and the gradients of the inputs with dropout: with the last round's tiles left whole, split where
 * that is quicker by reckoning, and product by product by cuBLAS, in random order. Arguments:
 * numbers of tokens, else 2048 and 8192; {@code --small} for shapes a 16th as large. Medians, in
 * microseconds; how far split and whole results are apart, over the root of the mean square.
 */
final class ProductSumBench {
  private static final Dtype DTYPE = Dtype.BF16;
  private static final int ADAPTERS = 28;
  private static final int RANK = 8;
  private static final int TURNS = 25;
  private static final List<String> FORMS = List.of("whole", "split", "cuBLAS");

  /** Linears with one input. */
  private record Group(String name, int in, int... outs) {}

  private record Case(String name, List<Sum> sums, Dropout dropout, Tiles tiles) {}

  private final Cuda cuda = Cuda.device(0);
  private final org.meteora.cuda.driver.Stream stream;
  private final Cublas blas;
  private final Kernels kernels;
  private final MemorySegment numbers;
  private final List<DeviceMemory> memory = new ArrayList<>();
  private final Random random = new Random(1);

  private ProductSumBench(Arena arena) {
    cuda.makeCurrent();
    stream = org.meteora.cuda.driver.Stream.create(cuda);
    blas = new Cublas(cuda, stream);
    kernels = Kernels.of(cuda, Kernels.Constants.ofLayers(DTYPE, 1, 1));
    var some = new short[1 << 23];
    for (int i = 0; i < some.length; i++) {
      some[i] = (short) (Float.floatToRawIntBits((float) random.nextGaussian()) >> 16);
    }
    numbers = arena.allocateFrom(ValueLayout.JAVA_SHORT, some);
  }

  /** Of normal numbers, its rows 16-byte aligned. */
  private Matrix matrix(int rows, int columns) {
    int stride = (columns + 7) / 8 * 8;
    long bytes = 2L * rows * stride;
    var all = cuda.allocate(bytes);
    memory.add(all);
    long most = numbers.byteSize() / 2;
    for (long at = 0; at < bytes; at += most) {
      var from = numbers.asSlice(2L * random.nextInt((int) most / 2)); // so that rows differ
      cuda.toDevice(all.address() + at, from, Math.min(bytes - at, most), stream);
    }
    return new Matrix(all.address(), rows, columns, stride, DTYPE);
  }

  private List<Case> cases(Group group, int tokens) {
    int ranks = ADAPTERS * RANK;
    int linears = group.outs.length;
    var x = matrix(tokens, group.in);
    var forward = new ArrayList<Sum>();
    var back = new ArrayList<Term>();
    back.add(new Term(matrix(tokens, linears * ranks), matrix(linears * ranks, group.in)));
    back.add(new Term(matrix(tokens, linears * ADAPTERS), matrix(linears * ADAPTERS, group.in)));
    for (int out : group.outs) {
      var w = matrix(out, group.in);
      var y = matrix(tokens, out);
      var adapters = new Term(matrix(tokens, ranks), matrix(out, ranks).transpose());
      forward.add(new Sum(y, false, List.of(adapters, new Term(x, w.transpose()))));
      back.add(new Term(matrix(tokens, out), w));
    }
    var backward = List.of(new Sum(matrix(tokens, group.in), false, back));
    return List.of(
        new Case(group.name, forward, Dropout.NONE, Tiles.of(cuda, forward)),
        new Case("d " + group.name, backward, Dropout.of(1234567, 0.05), Tiles.of(cuda, backward)));
  }

  private void run(Case each, int form) {
    if (form == 2) {
      for (var sum : each.sums) {
        boolean add = false;
        for (var term : sum.terms()) {
          blas.multiply(sum.y(), term.a(), term.b(), add);
          add = true;
        }
      }
    } else {
      int split = form == 1 ? each.tiles.split() : 0;
      SummedProducts.launch(kernels, each.sums, each.dropout, split, stream);
    }
  }

  private double micros(Case each, int form) {
    run(each, form);
    run(each, form);
    try (var begin = new Event();
        var end = new Event()) {
      begin.record(stream);
      for (int again = 0; again < 3; again++) {
        run(each, form);
      }
      end.record(stream);
      return 1e3 * end.millisSince(begin) / 3;
    }
  }

  private float[] result(Case each, int form) {
    run(each, form);
    var y = each.sums.getLast().y();
    int count = Math.min(y.rows() * y.stride(), 1 << 24); // the end, where tiles are split
    long from = y.address() + 2L * ((long) y.rows() * y.stride() - count);
    var bytes = MemorySegment.ofArray(cuda.download(from, 2L * count, stream));
    var values = new float[count];
    for (int i = 0; i < count; i++) {
      int bits = bytes.get(ValueLayout.JAVA_SHORT_UNALIGNED, 2L * i) << 16;
      values[i] = Float.intBitsToFloat(bits);
    }
    return values;
  }

  private double difference(Case each) {
    var whole = result(each, 0);
    var split = result(each, 1);
    if (!Arrays.equals(split, result(each, 1))) {
      throw new IllegalStateException(each.name + ": two results of the same differ");
    }
    double largest = 0;
    double squares = 0;
    for (int i = 0; i < whole.length; i++) {
      double apart = Math.abs((double) whole[i] - split[i]);
      largest = apart <= largest ? largest : apart; // NaN stays
      squares += (double) whole[i] * whole[i];
    }
    return largest / Math.sqrt(squares / whole.length);
  }

  private void run(int tokens, int part) {
    int hidden = 4096 / part;
    int inner = 14336 / part;
    var cases =
        Stream.of(
                new Group("q, k, v", hidden, hidden, hidden / 4, hidden / 4),
                new Group("o", hidden, hidden),
                new Group("gate, up", hidden, inner, inner),
                new Group("down", inner, hidden))
            .flatMap(group -> cases(group, tokens).stream())
            .sorted((a, b) -> Boolean.compare(a.name.startsWith("d "), b.name.startsWith("d ")))
            .toList();
    int forms = FORMS.size();
    var times = new double[cases.size() * forms][TURNS];
    var order = new ArrayList<>(IntStream.range(0, times.length).boxed().toList());
    for (int turn = 0; turn < TURNS; turn++) {
      Collections.shuffle(order, random);
      for (int at : order) {
        times[at][turn] = micros(cases.get(at / forms), at % forms);
      }
    }
    System.out.printf(
        "%d tokens%n%-12s %7s %6s %9s %9s %9s %9s %9s %9s%n",
        tokens, "", "rounds", "split", "whole", "split", "saved", "reckoned", "cuBLAS", "apart");
    var sums = new double[2][forms];
    for (int i = 0; i < cases.size(); i++) {
      var each = cases.get(i);
      var tiles = each.tiles;
      var median = new double[forms];
      for (int form = 0; form < forms; form++) {
        median[form] = Arrays.stream(times[i * forms + form]).sorted().toArray()[TURNS / 2];
        sums[2 * i / cases.size()][form] += median[form];
      }
      System.out.printf(
          "%-12s %7.2f %6d %9.1f %9.1f %9.1f %9.1f %9.1f %9.4f%n",
          each.name,
          (double) tiles.count() / tiles.clusters(),
          tiles.split(),
          median[0],
          median[1],
          median[0] - median[1],
          tiles.micros(),
          median[2],
          difference(each));
    }
    for (int i = 0; i < 2; i++) {
      System.out.printf(
          "%-27s %9.1f %9.1f %9.1f %9s %9.1f%n",
          i == 0 ? "forward" : "gradients, dropout",
          sums[i][0],
          sums[i][1],
          sums[i][0] - sums[i][1],
          "",
          sums[i][2]);
    }
    stream.synchronize();
    memory.forEach(DeviceMemory::close);
    memory.clear();
  }

  /** See the class. */
  public static void main(String[] arguments) {
    var tokens = Arrays.stream(arguments).filter(each -> !each.startsWith("-")).toList();
    int part = List.of(arguments).contains("--small") ? 4 : 1;
    try (var arena = Arena.ofShared()) {
      var bench = new ProductSumBench(arena);
      for (var each : tokens.isEmpty() ? List.of("2048", "8192") : tokens) {
        bench.run(Integer.parseInt(each), part);
      }
    }
  }
}
