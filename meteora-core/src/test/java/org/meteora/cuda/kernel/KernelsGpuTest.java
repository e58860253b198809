package org.meteora.cuda.kernel;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.meteora.cuda.decode.ReferenceLlama;
import org.meteora.cuda.driver.Cublas.Matrix;
import org.meteora.cuda.driver.Nvrtc;
import org.meteora.cuda.kernel.MatrixVector.Segment;
import org.meteora.cuda.kernel.MatrixVector.Tuning;
import org.meteora.cuda.kernel.PrefillKernels.PrefillRmsNorm;
import org.meteora.cuda.kernel.PrefillKernels.PrefillRopeAppend;
import org.meteora.cuda.kernel.SummedProducts.Sum;
import org.meteora.cuda.kernel.SummedProducts.Term;
import org.meteora.cuda.kernel.TrainingKernels.Dropout;
import org.meteora.cuda.kernel.TrainingKernels.Dropped;
import org.meteora.nn.Scores;
import org.meteora.tensor.Dtype;

/** Single kernels against float64 on random shapes. */
@Tag("gpu")
class KernelsGpuTest {
  @ParameterizedTest
  @EnumSource(names = {"F32", "F16", "BF16"})
  void matrixVectorProducts(Dtype dtype) {
    // rows of x, k, rows of each matrix
    int[][] shapes = {
      {1, 4096, 700, 5, 1},
      {3, 1000, 17, 4000},
      {16, 4096, 300, 300},
      {16, 14336, 96, 28},
      {8, 6000, 37, 16, 64, 16},
      {5, 513, 20},
      {2, 7, 3, 9},
      {1, 1, 1},
      {9, 5128, 2200},
      {16, 24, 16},
      {4, 4096, 4300, 28, 224}, // large enough for tiles that come first
      {2, 2048, 4352, 20},
      {16, 14336, 700, 28, 224}
    };
    try (var gpu = new Gpu(3)) {
      var gatesFirst = 0;
      var kernels = Kernels.of(gpu.cuda, new Kernels.Constants(dtype, 2, 32, 64, 1));
      for (var tuning :
          List.of(Tuning.standard(), new Tuning(160 << 10, 20 << 10, false, true, 0))) {
        for (var shape : shapes) {
          var m = shape[0];
          var k = shape[1];
          var x = gpu.normal(m * k, 1, 0, dtype);
          var segments = new ArrayList<Segment>();
          var weights = new ArrayList<double[]>();
          for (var i = 2; i < shape.length; i++) {
            var w = gpu.normal(shape[i] * k, 1, 0, dtype);
            segments.add(new Segment(w.address(), shape[i], i == 3)); // the second one first
            weights.add(w.values());
          }
          var product = new MatrixVector(kernels, segments, k, m, tuning);
          var ld = product.total() + 3;
          var y = gpu.zeros(4L * product.slots() * m * ld);
          var done = gpu.zeros(4);
          product.launch(x.address(), y, ld, done, 0, 0, 0).on(gpu.stream);
          assertThat(gpu.get(done, 1, Dtype.I32)[0]).isEqualTo(product.gateTiles());
          gatesFirst += product.gateTiles() > 0 ? 1 : 0;
          var parts = gpu.get(y, product.slots() * m * ld, Dtype.F32);
          var got = new double[m * product.total()];
          var expected = new double[got.length];
          for (var row = 0; row < m; row++) {
            for (var s = 0; s < product.slots(); s++) {
              for (var o = 0; o < product.total(); o++) {
                got[row * product.total() + o] += parts[(s * m + row) * ld + o];
              }
            }
            var at = row * product.total();
            var input = Arrays.copyOfRange(x.values(), row * k, (row + 1) * k);
            for (var w : weights) {
              var part = ReferenceLlama.times(w, input, w.length / k);
              System.arraycopy(part, 0, expected, at, part.length);
              at += part.length;
            }
          }
          assertThat(Gpu.error(got, expected))
              .as(dtype + " " + Arrays.toString(shape) + " slots " + product.slots())
              .isLessThan(2e-5);
        }
      }
      if (dtype != Dtype.F32 && gpu.cuda.capability() >= 90) {
        assertThat(gatesFirst).isGreaterThan(4);
      }
    }
  }

  @ParameterizedTest
  @EnumSource(names = {"F16", "BF16"})
  void wideProducts(Dtype dtype) {
    // rows of x, k, rows of each matrix
    int[][] shapes = {
      {17, 4096, 700, 5, 1},
      {20, 64, 17, 300},
      {33, 1024, 300, 28, 224},
      {64, 4096, 260, 100, 100, 252},
      {57, 640, 37, 16, 64, 16},
      {40, 192, 9, 9, 9, 9, 9, 9, 9, 9, 9},
      {64, 14336, 4096, 252},
      {33, 128, 8, 136, 129},
      {18, 704, 6144, 756},
      {50, 128, 36000, 20},
      {65, 4096, 6144, 252},
      {128, 640, 700, 5, 1},
      {200, 1024, 300, 28, 225},
      {256, 4096, 512, 252}
    };
    try (var gpu = new Gpu(3)) {
      var kernels = Kernels.of(gpu.cuda, new Kernels.Constants(dtype, 2, 32, 64, 1));
      Assumptions.assumeTrue(gpu.cuda.capability() == 90);
      for (var shape : shapes) {
        var m = shape[0];
        var k = shape[1];
        var x = gpu.normal(m * k, 1, 0, dtype);
        var matrices = new ArrayList<ManyRowsProduct.Matrix>();
        var weights = new ArrayList<double[]>();
        for (var i = 2; i < shape.length; i++) {
          var w = gpu.normal(shape[i] * k, 1, 0, dtype);
          matrices.add(new ManyRowsProduct.Matrix(w.address(), shape[i]));
          weights.add(w.values());
        }
        var product = ManyRowsProduct.of(kernels, matrices, k, m).orElseThrow();
        var at = ManyRowsProduct.Matrix.places(matrices);
        var ld = at[at.length - 1] + 8 * ((shape[shape.length - 1] + 7) / 8) + 4;
        var y = gpu.zeros(4L * product.slots() * m * ld);
        product.launch(x.address(), y, ld, false).on(gpu.stream);
        var parts = gpu.get(y, product.slots() * m * ld, Dtype.F32);
        for (var i = 0; i < weights.size(); i++) {
          var n = shape[2 + i];
          var got = new double[m * n];
          var expected = new double[m * n];
          for (var row = 0; row < m; row++) {
            var input = Arrays.copyOfRange(x.values(), row * k, (row + 1) * k);
            var part = ReferenceLlama.times(weights.get(i), input, n);
            System.arraycopy(part, 0, expected, row * n, n);
            for (var s = 0; s < product.slots(); s++) {
              for (var o = 0; o < n; o++) {
                got[row * n + o] += parts[(s * m + row) * ld + at[i] + o];
              }
            }
          }
          assertThat(Gpu.error(got, expected))
              .as(dtype + " " + Arrays.toString(shape) + " slots " + product.slots())
              .isLessThan(2e-5);
        }
      }
    }
  }

  /** A matrix as it lies in memory, its stride wider than its columns. */
  private record Wide(Matrix matrix, double[] values, int first) {
    static Wide of(Gpu gpu, int rows, int columns, Dtype dtype) {
      var stride = (columns + 7) / 8 * 8 + 16;
      var array = gpu.normal(rows * stride, 1, 0, dtype);
      return new Wide(new Matrix(array.address(), rows, columns, stride, dtype), array.values(), 0);
    }

    Wide columns(int from, int count) {
      var address = matrix.address() + 2L * from;
      return new Wide(
          new Matrix(address, matrix.rows(), count, matrix.stride(), matrix.dtype()),
          values,
          first + from);
    }

    double at(int row, int column) {
      return values[first + row * matrix.stride() + column];
    }
  }

  /** {@code a · b}, or {@code a · bᵀ}. */
  private record Factors(Wide a, Wide b, boolean isTransposed) {
    Term term() {
      return new Term(a.matrix(), isTransposed ? b.matrix().transpose() : b.matrix());
    }

    int columns() {
      return isTransposed ? b.matrix().rows() : b.matrix().columns();
    }

    double[] product() {
      var inner = a.matrix().columns();
      var columns = columns();
      var dense = new double[inner * columns];
      for (var i = 0; i < dense.length; i++) {
        var k = i / columns;
        var column = i % columns;
        dense[i] = isTransposed ? b.at(column, k) : b.at(k, column);
      }
      var product = new double[a.matrix().rows() * columns];
      IntStream.range(0, a.matrix().rows())
          .parallel()
          .forEach(
              row -> {
                for (var k = 0; k < inner; k++) {
                  var factor = a.at(row, k);
                  for (var column = 0; column < columns; column++) {
                    product[row * columns + column] += factor * dense[k * columns + column];
                  }
                }
              });
      return product;
    }
  }

  @ParameterizedTest
  @EnumSource(names = {"F16", "BF16"})
  void sumsOfManyRows(Dtype dtype) {
    try (var gpu = new Gpu(9)) {
      Assumptions.assumeTrue(gpu.cuda.capability() == 90);
      var dropout = Dropout.of(0x123456789abcdefL, 0.1);
      for (var rows : new int[] {1030, 1744, 2500}) {
        // y = c Bᵀ + x Wᵀ of linears with one input, a row of whose c lie beside each other
        for (var outs : new int[][] {{2600, 264, 136}, {520, 520}, {8}}) {
          int[] ranks = {24, 8, 72};
          var x = Wide.of(gpu, rows, 520, dtype);
          var c = Wide.of(gpu, rows, 104, dtype);
          var sums = new ArrayList<List<Factors>>();
          var from = 0;
          for (var i = 0; i < outs.length; i++) {
            sums.add(
                List.of(
                    new Factors(
                        c.columns(from, ranks[i]), Wide.of(gpu, ranks[i], outs[i], dtype), false),
                    new Factors(x, Wide.of(gpu, outs[i], 520, dtype), true)));
            from += ranks[i];
          }
          checkSums(gpu, sums, Dropout.NONE);
          if (outs.length == 2) {
            checkSums(gpu, sums, dropout);
          }
        }
        // the gradient of the input of three linears: by their adapters, and by their weights
        var sum = new ArrayList<Factors>();
        for (var inner : new int[] {101, 1300, 264, 136}) {
          sum.add(
              new Factors(
                  Wide.of(gpu, rows, inner, dtype), Wide.of(gpu, inner, 520, dtype), false));
        }
        checkSums(gpu, List.of(sum), Dropout.NONE);
        checkSums(gpu, List.of(sum), dropout);
      }
    }
  }

  @ParameterizedTest
  @EnumSource(names = {"F16", "BF16"})
  void sumsWhoseLastTilesAreSplit(Dtype dtype) {
    try (var gpu = new Gpu(9)) {
      Assumptions.assumeTrue(gpu.cuda.capability() == 90);
      var dropout = Dropout.of(0x123456789abcdefL, 0.1);
      for (var rows : new int[] {1030, 1744}) {
        var sums = new ArrayList<List<Factors>>();
        var x = Wide.of(gpu, rows, 4120, dtype);
        for (var out : rows == 1030 ? new int[] {1304} : new int[] {2600, 264, 136}) {
          sums.add(
              List.of(
                  new Factors(Wide.of(gpu, rows, 72, dtype), Wide.of(gpu, 72, out, dtype), false),
                  new Factors(x, Wide.of(gpu, out, 4120, dtype), true)));
        }
        assertThat(checkSums(gpu, sums, Dropout.NONE)).isPositive();
        // shares that begin within the first term, which is dropped, and behind it
        var sum = new ArrayList<Factors>();
        for (var inner : new int[] {1300, 101, 2600, 264}) {
          sum.add(
              new Factors(
                  Wide.of(gpu, rows, inner, dtype), Wide.of(gpu, inner, 520, dtype), false));
        }
        assertThat(checkSums(gpu, List.of(sum), dropout)).isPositive();
      }
    }
  }

  /** Returns how many tiles were split. */
  private static int checkSums(Gpu gpu, List<List<Factors>> all, Dropout dropout) {
    var like = all.getFirst().getFirst().a().matrix();
    var rows = like.rows();
    var dtype = like.dtype();
    var sums = new ArrayList<Sum>();
    for (var sum : all) {
      var columns = sum.getFirst().columns();
      var stride = columns + 24;
      var y = gpu.poisoned(2L * (rows + 1) * stride);
      sums.add(
          new Sum(
              new Matrix(y, rows, columns, stride, dtype),
              false,
              sum.stream().map(Factors::term).toList()));
    }
    var split = SummedProducts.Tiles.of(gpu.cuda, sums).split();
    assertThat(split > 0 || SummedProducts.take(gpu.cuda, sums)).isTrue();
    var kernels = Kernels.of(gpu.cuda, Kernels.Constants.ofLayers(dtype, 1, 1));
    SummedProducts.launch(kernels, sums, dropout, gpu.stream);
    var first =
        sums.stream()
            .map(sum -> gpu.cuda.download(sum.y().address(), bytes(sum), gpu.stream))
            .toList();
    for (var again = 0; again < 20; again++) {
      SummedProducts.launch(kernels, sums, dropout, gpu.stream);
    }
    for (var i = 0; i < all.size(); i++) {
      var y = sums.get(i).y();
      assertThat(gpu.cuda.download(y.address(), bytes(sums.get(i)), gpu.stream))
          .isEqualTo(first.get(i));
      var columns = y.columns();
      var expected = new double[rows * columns];
      for (var factors : all.get(i)) {
        var product = factors.product();
        var drops = dropout.threshold() != 0 && factors == all.get(i).getFirst();
        for (var at = 0; at < product.length; at++) {
          var factor = drops ? DropoutDraw.factor(dropout, at / columns, at % columns, columns) : 1;
          expected[at] += product[at] * factor;
        }
      }
      var size = Math.sqrt(Arrays.stream(expected).map(v -> v * v).average().orElseThrow());
      var got = gpu.get(y.address(), (rows + 1) * y.stride(), dtype);
      double worst = 0;
      var written = 0;
      for (var at = 0; at < got.length; at++) {
        var row = at / y.stride();
        var column = at % y.stride();
        if (row < rows && column < columns) {
          var wanted = expected[row * columns + column];
          worst = Math.max(worst, Math.abs(got[at] - wanted) / (Math.abs(wanted) + size));
        } else if (!Double.isNaN(got[at])) {
          written++;
        }
      }
      var what =
          "%s, %d of %d sums, %d x %d, %s".formatted(dtype, i, all.size(), rows, columns, dropout);
      assertThat(worst).as(what).isLessThan(dtype == Dtype.F16 ? 5e-4 : 4e-3);
      assertThat(written).as(what + ": elements outside").isZero();
    }
    return split;
  }

  private static long bytes(Sum sum) {
    return 2L * sum.y().rows() * sum.y().stride();
  }

  @ParameterizedTest
  @EnumSource(names = {"F16", "BF16"})
  void productsWithWhatDropoutKeeps(Dtype dtype) {
    try (var gpu = new Gpu(11)) {
      Assumptions.assumeTrue(gpu.cuda.capability() == 90);
      var dropout = Dropout.of(0x123456789abcdefL, 0.1);
      var kernels = Kernels.of(gpu.cuda, Kernels.Constants.ofMasked(dtype));
      var training = TrainingKernels.of(gpu.cuda, dtype, 1, 1, gpu.stream);
      // ranks and gates, which end a tile or do not, or have one for themselves; no gates
      for (var shape :
          new int[][] {
            {1030, 512, 224, 28},
            {300, 1280, 672, 84},
            {2100, 768, 448, 56},
            {700, 256, 64, 8},
            {300, 512, 256, 16},
            {300, 512, 384, 48},
            {513, 512, 288, 0}
          }) {
        var tokens = shape[0];
        var in = shape[1];
        var ranks = shape[2];
        var columns = (ranks + shape[3] + 7) / 8 * 8;
        var x = Wide.of(gpu, tokens, in, dtype);
        var stack = Wide.of(gpu, columns, in, dtype);
        var slope = Wide.of(gpu, tokens, columns, dtype);
        var kept = gpu.poisoned((long) tokens * in / 8);
        training.drop(tokens, in, x.matrix().address(), new Dropped(0, kept, dropout));
        var input = new MaskedProducts.Input(x.matrix(), kept, dropout, ranks);
        var rows = gpu.poisoned(2L * tokens * columns);
        var gradient = gpu.poisoned(4L * columns * in);
        MaskedProducts.rows(
            kernels,
            input,
            stack.matrix(),
            new Matrix(rows, tokens, columns, columns, dtype),
            gpu.stream);
        MaskedProducts.gradient(kernels, input, slope.matrix(), gradient, gpu.stream);
        var dropped = new double[tokens * in];
        var whole = new double[tokens * in];
        for (var i = 0; i < dropped.length; i++) {
          whole[i] = x.at(i / in, i % in);
          dropped[i] = whole[i] * DropoutDraw.factor(dropout, i / in, i % in, in);
        }
        var ofRows = new double[tokens * columns];
        var ofGradient = new double[columns * in];
        for (var t = 0; t < tokens; t++) {
          for (var c = 0; c < columns; c++) {
            var its = c < ranks ? dropped : whole;
            double sum = 0;
            for (var i = 0; i < in; i++) {
              sum += its[t * in + i] * stack.at(c, i);
              ofGradient[c * in + i] += its[t * in + i] * slope.at(t, c);
            }
            ofRows[t * columns + c] = sum;
          }
        }
        assertThat(Gpu.error(gpu.get(rows, tokens * columns, dtype), ofRows))
            .isLessThan(dtype == Dtype.F16 ? 5e-4 : 4e-3);
        assertThat(Gpu.error(gpu.get(gradient, columns * in, Dtype.F32), ofGradient))
            .isLessThan(1e-4);
      }
    }
  }

  @Test
  void sumsThatAreMultipliedOneByOne() {
    try (var gpu = new Gpu(9)) {
      Assumptions.assumeTrue(gpu.cuda.capability() == 90);
      var y = new Matrix(1 << 20, 1024, 64, 64, Dtype.BF16);
      var a = new Matrix(2 << 20, 1024, 16, 24, Dtype.BF16);
      var b = new Matrix(3 << 20, 16, 64, 72, Dtype.BF16);
      var sum = sum(y, a, b);
      var transposed = new Matrix(b.address(), 64, 16, 24, Dtype.BF16).transpose();
      var taken = List.of(List.of(sum), List.of(sum, sum, sum), List.of(sum(y, a, transposed)));
      assertThat(taken).allMatch(sums -> SummedProducts.take(gpu.cuda, sums));
      // one round of tiles, half of which nobody wants
      var few = new Matrix(y.address(), 300, 4096, 4096, Dtype.BF16);
      var fewA = new Matrix(a.address(), 300, 4096, 4096, Dtype.BF16);
      var fewB = new Matrix(b.address(), 4096, 4096, 4096, Dtype.BF16);
      var term = new Term(a, b);
      var seven = new Sum(y, false, Stream.generate(() -> term).limit(7).toList());
      var refused =
          List.of(
              List.of(new Sum(y, true, List.of(term, term))),
              List.of(new Sum(y, false, List.of(term))),
              List.of(seven),
              List.of(sum, sum, sum, sum),
              List.of(sum(few, fewA, fewB)),
              List.of(sum(y, new Matrix(a.address(), 16, 1024, 1024, Dtype.BF16).transpose(), b)),
              List.of(sum(of(y, 0, 0, Dtype.F32), of(a, 0, 0, Dtype.F32), of(b, 0, 0, Dtype.F32))),
              List.of(sum(of(y, 8, 0, Dtype.BF16), a, b)),
              List.of(sum(y, of(a, 8, 0, Dtype.BF16), b)),
              List.of(sum(y, a, of(b, 8, 0, Dtype.BF16))),
              List.of(sum(of(y, 0, 4, Dtype.BF16), a, b)),
              List.of(sum(y, of(a, 0, 4, Dtype.BF16), b)),
              List.of(sum(y, a, of(b, 0, 4, Dtype.BF16))));
      assertThat(refused).noneMatch(sums -> SummedProducts.take(gpu.cuda, sums));
    }
  }

  private static Sum sum(Matrix y, Matrix a, Matrix b) {
    return new Sum(y, false, List.of(new Term(a, b), new Term(a, b)));
  }

  /** The same shape elsewhere. */
  private static Matrix of(Matrix m, int bytes, int wider, Dtype dtype) {
    return new Matrix(m.address() + bytes, m.rows(), m.columns(), m.stride() + wider, dtype);
  }

  @BeforeAll
  static void compile() {
    Gpu.compileAhead(
        Stream.of(Dtype.F32, Dtype.F16, Dtype.BF16)
            .flatMap(
                dtype ->
                    Stream.concat(
                        Stream.of(new Kernels.Constants(dtype, 2, 32, 64, 1)),
                        IntStream.of(1, 2, 3)
                            .mapToObj(k -> Kernels.Constants.ofLayers(dtype, k, 32)))));
  }

  private record Bank(AdapterKernels.Target target, double[] g, double[] a, double[] b) {}

  private static Bank bank(Gpu gpu, Dtype dtype, int in, int out, int[] ranks, boolean allOnOne) {
    var all = Arrays.stream(ranks).sum();
    var scales = new float[ranks.length];
    for (var i = 0; i < scales.length; i++) {
      scales[i] = 0.5f + i * 0.1f;
    }
    var gates = new double[ranks.length * in];
    for (var i = 0; i < gates.length; i++) {
      gates[i] =
          allOnOne
              ? (i / in == 1 ? 1 : 0.001 * gpu.random.nextGaussian())
              : gpu.random.nextGaussian();
    }
    var g = gpu.put(gates, dtype);
    var a = gpu.normal(all * in, 1 / Math.sqrt(in), 0, dtype);
    var b = gpu.normal(all * out, 0.3, 0, dtype);
    return new Bank(
        new AdapterKernels.Target(
            new AdapterMemory(
                g.address(),
                a.address(),
                gpu.transposed(b, out, all, dtype).address(),
                ranks,
                scales),
            out),
        g.values(),
        a.values(),
        b.values());
  }

  @ParameterizedTest
  @EnumSource(names = {"F32", "F16", "BF16"})
  void adaptersOfADecodeStep(Dtype dtype) {
    int[][] ranks = {{8, 8, 8, 8}, {1, 1}, {64, 3, 0, 17, 8}, {5}};
    try (var gpu = new Gpu(4)) {
      var round = 0;
      for (var r : ranks) {
        for (var tokens : new int[] {1, 7, 16, 37}) {
          var in = new int[] {256, 77, 520, 31}[round % 4];
          var topK = Math.min(1 + round % 3, r.length);
          var temperature = 1 + round % 2;
          var banks =
              List.of(
                  bank(gpu, dtype, in, 300, r, round % 5 == 4),
                  bank(gpu, dtype, in, 33, r, false),
                  bank(gpu, dtype, in, 1, r, false));
          var x = gpu.normal(tokens * in, 1, 0, dtype);
          if (round % 5 == 4) {
            for (var i = 0; i < x.values().length; i++) {
              x.values()[i] = Math.abs(x.values()[i]);
            }
            x = gpu.put(x.values(), dtype);
          }
          try (var moe =
              new AdapterKernels(
                  gpu.cuda,
                  dtype,
                  org.meteora.nn.Scores.PRODUCT,
                  topK,
                  in,
                  banks.stream().map(Bank::target).toList(),
                  gpu.stream)) {
            var bases =
                banks.stream()
                    .map(bank -> gpu.normal(tokens * bank.target().out(), 0.1, 0, dtype))
                    .toList();
            var chosenBy = new long[banks.size()];
            Arrays.setAll(chosenBy, i -> gpu.poisoned(8L * tokens * topK));
            moe.routeAndAdd(
                x.address(),
                bases.stream().mapToLong(Gpu.Array::address).toArray(),
                tokens,
                chosenBy,
                temperature,
                gpu.stream);
            for (var i = 0; i < banks.size(); i++) {
              var bank = banks.get(i);
              var chosen = gpu.get(chosenBy[i], tokens * topK, Dtype.I32);
              var given = gpu.get(chosenBy[i] + 4L * tokens * topK, tokens * topK, Dtype.F32);
              var out = bank.target().out();
              var expected = bases.get(i).values().clone();
              for (var t = 0; t < tokens; t++) {
                var row = Arrays.copyOfRange(x.values(), t * in, (t + 1) * in);
                var y =
                    ReferenceLlama.adapters(
                        row,
                        bank.g(),
                        bank.a(),
                        bank.b(),
                        r,
                        bank.target().adapters().scales(),
                        out,
                        topK,
                        temperature);
                for (var o = 0; o < out; o++) {
                  expected[t * out + o] += y[o];
                }
                var w =
                    ReferenceLlama.weights(
                        ReferenceLlama.times(bank.g(), row, r.length), topK, temperature);
                for (var j = 0; j < topK; j++) {
                  var at = t * topK + j;
                  assertThat(Math.abs(w[(int) chosen[at]] - given[at])).isLessThan(1e-3);
                }
              }
              var got = gpu.get(bases.get(i).address(), tokens * out, dtype);
              assertThat(Gpu.error(got, expected))
                  .as("%s ranks %s tokens %d linear %d", dtype, Arrays.toString(r), tokens, i)
                  .isLessThan(dtype == Dtype.F32 ? 1e-5 : dtype == Dtype.F16 ? 1e-3 : 6e-3);
            }
          }
          round++;
        }
      }
    }
  }

  @ParameterizedTest
  @EnumSource(names = {"F32", "F16", "BF16"})
  void scaledZOfAPrefill(Dtype dtype) {
    try (var gpu = new Gpu(5)) {
      for (var n : new int[] {1, 3, 28, 200}) {
        var topK = Math.min(2, n);
        var tokens = 1003;
        var banks = new ArrayList<Bank>();
        for (var i = 0; i < 1 + n % 3; i++) {
          var ranks = new int[n];
          for (var e = 0; e < n; e++) {
            ranks[e] = n == 28 ? 8 : (i + e) % 4;
          }
          banks.add(bank(gpu, dtype, 8, 8, ranks, false));
        }
        var stride =
            AdapterKernels.columns(
                banks.stream()
                    .map(bank -> bank.target().adapters())
                    .mapToInt(a -> a.count() + a.sumOfRanks())
                    .sum());
        var ranks = banks.stream().mapToInt(bank -> bank.target().adapters().sumOfRanks()).sum();
        var values = gpu.random.doubles((long) tokens * stride).map(v -> 2 * v - 1).toArray();
        for (var t = 0; t < tokens; t++) {
          for (var bank = 0; bank < banks.size(); bank++) {
            // distinct logits: ties may fall either way
            var order = gpu.random.ints(0, 2 * n + 1).distinct().limit(n).toArray();
            for (var e = 0; e < n; e++) {
              values[t * stride + ranks + bank * n + e] = order[e] / 8.0 - 2;
            }
          }
        }
        var rows = gpu.put(values, dtype);
        var chosenBy = new long[banks.size()];
        Arrays.setAll(chosenBy, i -> gpu.poisoned(8L * tokens * topK));
        var targets = banks.stream().map(Bank::target).toList();
        try (var moe =
            new AdapterKernels(
                gpu.cuda, dtype, org.meteora.nn.Scores.PRODUCT, topK, 8, targets, gpu.stream)) {
          moe.scaleForPrefill(rows.address(), 0, tokens, chosenBy, 2, gpu.stream);
        }
        var expected = rows.values().clone();
        var from = 0;
        for (var i = 0; i < banks.size(); i++) {
          var adapters = targets.get(i).adapters();
          var chosen = gpu.get(chosenBy[i], tokens * topK, Dtype.I32);
          var given = gpu.get(chosenBy[i] + 4L * tokens * topK, tokens * topK, Dtype.F32);
          for (var t = 0; t < tokens; t++) {
            var at = t * stride + from;
            var gate = t * stride + ranks + i * n;
            var w =
                ReferenceLlama.weights(Arrays.copyOfRange(rows.values(), gate, gate + n), topK, 2);
            for (var e = 0; e < n; e++) {
              for (var r = 0; r < adapters.ranks()[e]; r++, at++) {
                expected[at] *= w[e] * adapters.scales()[e];
              }
            }
            for (var j = 0; j < topK; j++) {
              assertThat(Math.abs(w[(int) chosen[t * topK + j]] - given[t * topK + j]))
                  .isLessThan(1e-5);
            }
          }
          from += adapters.sumOfRanks();
        }
        var got = gpu.get(rows.address(), tokens * stride, dtype);
        assertThat(Gpu.error(got, expected))
            .as(dtype + " " + n)
            .isLessThan(dtype == Dtype.F32 ? 1e-6 : dtype == Dtype.F16 ? 1e-3 : 6e-3);
      }
    }
  }

  @ParameterizedTest
  @EnumSource(names = {"F16", "BF16"})
  void groupedAdaptersOfAPrefill(Dtype dtype) {
    int[][] ranks = {{8, 8, 8, 8, 8}, {64, 3, 0, 17, 8, 16}, {2, 9}};
    try (var gpu = new Gpu(7)) {
      Assumptions.assumeTrue(gpu.cuda.capability() >= 80);
      for (var round = 0; round < ranks.length; round++) {
        groupedAdapters(gpu, dtype, ranks[round], new int[] {300, 37, 2100}[round], 1 + round % 3);
      }
      var many = new int[200];
      Arrays.fill(many, 8);
      groupedAdapters(gpu, dtype, many, 700, 2);
    }
  }

  private static void groupedAdapters(Gpu gpu, Dtype dtype, int[] ranks, int tokens, int k) {
    var n = ranks.length;
    var topK = Math.min(k, n);
    var in = n == 5 ? 1312 : 96;
    int[] outs = {72, 72, 8};
    var banks = new ArrayList<Bank>();
    for (var out : outs) {
      banks.add(bank(gpu, dtype, in, out, ranks, false));
    }
    var x = gpu.normal(tokens * in, 1, 0, dtype);
    var sum = Arrays.stream(ranks).sum();
    var stride = AdapterKernels.columns(3 * (n + sum));
    var values = new double[tokens * stride];
    for (var t = 0; t < tokens; t++) {
      var row = Arrays.copyOfRange(x.values(), t * in, (t + 1) * in);
      for (var bank = 0; bank < 3; bank++) {
        var z = ReferenceLlama.times(banks.get(bank).a(), row, sum);
        System.arraycopy(z, 0, values, t * stride + bank * sum, sum);
        // distinct logits: ties may fall either way
        var order = gpu.random.ints(0, 2 * n + 1).distinct().limit(n).toArray();
        for (var e = 0; e < n; e++) {
          values[t * stride + 3 * sum + bank * n + e] = order[e] / 8.0 - 2;
        }
      }
    }
    var rows = gpu.put(values, dtype);
    var chosenBy = new long[3];
    Arrays.setAll(chosenBy, i -> gpu.poisoned(8L * tokens * topK));
    var targets = banks.stream().map(Bank::target).toList();
    var y = new long[3];
    Arrays.setAll(y, i -> gpu.poisoned(2L * tokens * outs[i]));
    try (var kernels =
        new AdapterKernels(gpu.cuda, dtype, Scores.PRODUCT, topK, in, targets, gpu.stream)) {
      assertThat(kernels.grouped().isAvailable()).isTrue();
      var scratch = gpu.poisoned(kernels.grouped().scratchBytes(tokens));
      var logits = rows.address() + 2L * 3 * sum;
      var pass = new GroupedPrefill.Pass(logits, stride, x.address(), tokens, chosenBy, 2, scratch);
      kernels.grouped().group(pass, gpu.stream);
      kernels.grouped().add(pass, y, gpu.stream);
      gpu.stream.synchronize();
    }
    for (var i = 0; i < 3; i++) {
      var got = gpu.get(y[i], tokens * outs[i], dtype);
      assertThat(
              Gpu.error(got, groupedReference(banks.get(i), rows, i, stride, ranks, topK, tokens)))
          .as("%s n %d linear %d", dtype, n, i)
          .isLessThan(dtype == Dtype.F16 ? 1e-3 : 6e-3);
      var chosen = gpu.get(chosenBy[i], tokens * topK, Dtype.I32);
      assertThat(Arrays.stream(chosen)).allMatch(e -> e >= 0 && e < n);
    }
  }

  /** What the adapters of bank i add, whose z and logits are in rows. */
  private static double[] groupedReference(
      Bank bank, Gpu.Array rows, int i, int stride, int[] ranks, int topK, int tokens) {
    var n = ranks.length;
    var sum = Arrays.stream(ranks).sum();
    var out = bank.target().out();
    var added = new double[tokens * out];
    for (var t = 0; t < tokens; t++) {
      var gate = t * stride + 3 * sum + i * n;
      var w = ReferenceLlama.weights(Arrays.copyOfRange(rows.values(), gate, gate + n), topK, 2);
      var at = 0;
      for (var e = 0; e < n; at += ranks[e++]) {
        var factor = w[e] * bank.target().adapters().scales()[e];
        for (var r = at; factor != 0 && r < at + ranks[e]; r++) {
          var z = factor * rows.values()[t * stride + i * sum + r];
          for (var o = 0; o < out; o++) {
            added[t * out + o] += z * bank.b()[o * sum + r];
          }
        }
      }
    }
    return added;
  }

  @ParameterizedTest
  @EnumSource(names = {"F32", "F16", "BF16"})
  void normsAndActivationsOfAPrefill(Dtype dtype) {
    try (var gpu = new Gpu(6)) {
      var kernels = new PrefillKernels(gpu.cuda, dtype);
      for (var hidden : new int[] {1, 37, 4096, 5000}) {
        var rows = 5;
        var h = gpu.normal(rows * hidden, 2, 0, dtype);
        var delta = gpu.normal(rows * hidden, 1, 0, dtype);
        var weight = gpu.normal(hidden, 0.2, 1, dtype);
        var out = gpu.poisoned((long) rows * hidden * dtype.bytes());
        var sum = gpu.poisoned((long) rows * hidden * dtype.bytes());
        kernels.norm(
            new PrefillRmsNorm(
                h.address(), delta.address(), sum, weight.address(), out, rows, hidden, 1e-5f),
            gpu.stream);
        var expected = new double[rows * hidden];
        var sums = new double[rows * hidden];
        for (var row = 0; row < rows; row++) {
          double squares = 0;
          for (var i = row * hidden; i < (row + 1) * hidden; i++) {
            sums[i] = h.values()[i] + delta.values()[i];
            squares += Math.pow(Gpu.round(sums[i], dtype), 2);
          }
          for (var i = 0; i < hidden; i++) {
            expected[row * hidden + i] =
                Gpu.round(sums[row * hidden + i], dtype)
                    / Math.sqrt(squares / hidden + 1e-5)
                    * weight.values()[i];
          }
        }
        var tolerance = dtype == Dtype.F32 ? 1e-6 : dtype == Dtype.F16 ? 1e-3 : 6e-3;
        assertThat(Gpu.error(gpu.get(out, rows * hidden, dtype), expected)).isLessThan(tolerance);
        assertThat(Gpu.error(gpu.get(sum, rows * hidden, dtype), sums)).isLessThan(tolerance);
        kernels.norm( // without a delta
            new PrefillRmsNorm(sum, 0, 0, weight.address(), out, rows, hidden, 1e-5f), gpu.stream);
        assertThat(Gpu.error(gpu.get(out, rows * hidden, dtype), expected)).isLessThan(tolerance);

        var up = gpu.normal(rows * hidden, 1, 0, dtype);
        kernels.siluUp(delta.address(), up.address(), out, (long) rows * hidden, gpu.stream);
        for (var i = 0; i < expected.length; i++) {
          var g = delta.values()[i];
          expected[i] = g / (1 + Math.exp(-g)) * up.values()[i];
        }
        assertThat(Gpu.error(gpu.get(out, rows * hidden, dtype), expected)).isLessThan(tolerance);
      }
    }
  }

  @ParameterizedTest
  @EnumSource(names = {"F32", "F16", "BF16"})
  void queriesAndKeysOfAPrefill(Dtype dtype) {
    // batch, seq, heads, kvHeads, headDim, capacity, past, rows of angles
    int[][] shapes = {
      {2, 37, 4, 2, 128, 64, 5, 1},
      {3, 5, 3, 1, 10, 9, 4, 3},
      {1, 300, 6, 2, 80, 300, 0, 1},
      {2, 1, 1, 1, 2, 3, 2, 2}
    };
    try (var gpu = new Gpu(8)) {
      var kernels = new PrefillKernels(gpu.cuda, dtype);
      for (var s : shapes) {
        var shape = Arrays.toString(s);
        var tokens = s[0] * s[1];
        var dim = s[4];
        var q = gpu.normal(tokens * s[2] * dim, 1, 0, dtype);
        var k = gpu.normal(tokens * s[3] * dim, 1, 0, dtype);
        var v = gpu.normal(tokens * s[3] * dim, 1, 0, dtype);
        var cos = new double[s[7] * s[1] * dim];
        var sin = new double[cos.length];
        for (var i = 0; i < cos.length; i++) {
          var pair = i % dim % (dim / 2);
          var angle = (i / dim + 3) * Math.pow(10, -2.0 * pair / dim);
          cos[i] = Math.cos(angle);
          sin[i] = i % dim < dim / 2 ? -Math.sin(angle) : Math.sin(angle);
        }
        var cosines = gpu.put(cos, dtype);
        var sines = gpu.put(sin, dtype);
        var cached = s[0] * s[3] * s[5] * dim;
        var keys = gpu.normal(cached, 1, 0, dtype);
        var values = gpu.normal(cached, 1, 0, dtype);
        kernels.rope(
            new PrefillRopeAppend(
                q.address(),
                k.address(),
                v.address(),
                cosines.address(),
                sines.address(),
                keys.address(),
                values.address(),
                0,
                tokens,
                s[5],
                s[6],
                s[1],
                s[7],
                s[2],
                s[3],
                dim,
                true),
            gpu.stream);
        var expectedQ = q.values().clone();
        var expectedK = keys.values().clone();
        var expectedV = values.values().clone();
        for (var t = 0; t < tokens; t++) {
          var row = t / s[1];
          var position = t % s[1];
          for (var i = 0; i < dim; i++) {
            var angle = ((s[7] > 1 ? row * s[1] : 0) + position) * dim + i;
            var c = cosines.values()[angle];
            var swapped = (i + dim / 2) % dim;
            for (var h = 0; h < s[2]; h++) {
              var head = (t * s[2] + h) * dim;
              expectedQ[head + i] =
                  q.values()[head + i] * c + q.values()[head + swapped] * sines.values()[angle];
            }
            for (var h = 0; h < s[3]; h++) {
              var head = (t * s[3] + h) * dim;
              var slot = ((row * s[3] + h) * s[5] + s[6] + position) * dim + i;
              expectedK[slot] =
                  k.values()[head + i] * c + k.values()[head + swapped] * sines.values()[angle];
              expectedV[slot] = v.values()[head + i];
            }
          }
        }
        var tolerance = dtype == Dtype.F32 ? 1e-6 : dtype == Dtype.F16 ? 1e-3 : 6e-3;
        assertThat(Gpu.error(gpu.get(q.address(), expectedQ.length, dtype), expectedQ))
            .as(shape + " queries")
            .isLessThan(tolerance);
        assertThat(Gpu.error(gpu.get(keys.address(), cached, dtype), expectedK))
            .as(shape + " keys")
            .isLessThan(tolerance);
        assertThat(gpu.get(values.address(), cached, dtype)).isEqualTo(expectedV);
      }
    }
  }

  @Test
  void damagedCacheEntriesAreMadeAgain(@org.junit.jupiter.api.io.TempDir java.nio.file.Path cache)
      throws Exception {
    try (var gpu = new Gpu(7)) {
      var source =
          new Nvrtc.Source("extern \"C\" __global__ void nothing() {}", java.util.Map.of());
      var first = Nvrtc.get().compile(source, List.of(), gpu.cuda.capability(), cache);
      java.nio.file.Path file;
      try (var files = java.nio.file.Files.list(cache)) {
        file = files.findFirst().orElseThrow();
      }
      var kept = java.nio.file.Files.readAllBytes(file);
      java.nio.file.Files.write(file, Arrays.copyOf(kept, kept.length / 2));
      assertThat(Nvrtc.get().compile(source, List.of(), gpu.cuda.capability(), cache))
          .isEqualTo(first);
      assertThat(java.nio.file.Files.readAllBytes(file)).isEqualTo(kept);
    }
  }
}
