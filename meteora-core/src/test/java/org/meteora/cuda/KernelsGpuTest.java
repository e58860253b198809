package org.meteora.cuda;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.meteora.cuda.MatrixVector.Segment;
import org.meteora.cuda.MatrixVector.Tuning;
import org.meteora.torch.Dtype;

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
      {16, 24, 16}
    };
    try (var gpu = new Gpu(3)) {
      var kernels = Kernels.of(gpu.cuda, new Kernels.Constants(dtype, 2, 32, 64, 1));
      for (var tuning : List.of(Tuning.standard(), new Tuning(160 << 10, 20 << 10, false, 0))) {
        for (var shape : shapes) {
          var m = shape[0];
          var k = shape[1];
          var x = gpu.normal(m * k, 1, 0, dtype);
          var segments = new ArrayList<Segment>();
          var weights = new ArrayList<double[]>();
          for (var i = 2; i < shape.length; i++) {
            var w = gpu.normal(shape[i] * k, 1, 0, dtype);
            segments.add(new Segment(w.address(), shape[i]));
            weights.add(w.values());
          }
          var product = new MatrixVector(kernels, segments, k, m, tuning);
          var ld = product.total() + 3;
          var y = gpu.zeros(4L * product.slots() * m * ld);
          product.launch(x.address(), y, ld, 0, 0, 0).on(gpu.stream);
          var parts = gpu.get(y, product.slots() * m * ld, Dtype.F32);
          var got = new double[m * product.total()];
          var expected = new double[got.length];
          for (var row = 0; row < m; row++) {
            for (var s = 0; s < product.slots(); s++) {
              for (var o = 0; o < product.total(); o++) {
                got[row * product.total() + o] += parts[(s * m + row) * ld + o];
              }
            }
            var at = 0;
            for (var w : weights) {
              for (var o = 0; o < w.length / k; o++, at++) {
                for (var i = 0; i < k; i++) {
                  expected[row * product.total() + at] += w[o * k + i] * x.values()[row * k + i];
                }
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

  private record Bank(FusedMoe.Target target, double[] g, double[] a, double[] b) {}

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
        new FusedMoe.Target(
            new DecodeModel.Adapters(
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
  void adaptersOfFewTokens(Dtype dtype) {
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
              new FusedMoe(
                  gpu.cuda,
                  dtype,
                  topK,
                  in,
                  banks.stream().map(Bank::target).toList(),
                  gpu.stream)) {
            var bases =
                banks.stream()
                    .map(bank -> gpu.normal(tokens * bank.target().out(), 0.1, 0, dtype))
                    .toList();
            var indices = gpu.poisoned(4L * banks.size() * tokens * topK);
            var weights = gpu.poisoned(4L * banks.size() * tokens * topK);
            moe.addFew(
                x.address(),
                bases.stream().mapToLong(Gpu.Array::address).toArray(),
                tokens,
                indices,
                weights,
                temperature,
                gpu.stream);
            var chosen = gpu.get(indices, banks.size() * tokens * topK, Dtype.I32);
            var given = gpu.get(weights, banks.size() * tokens * topK, Dtype.F32);
            for (var i = 0; i < banks.size(); i++) {
              var bank = banks.get(i);
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
                  var at = (i * tokens + t) * topK + j;
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
  void maskOfManyTokens(Dtype dtype) {
    try (var gpu = new Gpu(5)) {
      for (var n : new int[] {1, 3, 28, 200}) {
        var ranks = new int[n];
        for (var i = 0; i < n; i++) {
          ranks[i] = n == 28 ? 8 : i % 4;
        }
        var topK = Math.min(2, n);
        var all = Arrays.stream(ranks).sum();
        var tokens = 1003;
        var bank = bank(gpu, dtype, 8, 8, ranks, false);
        // distinct logits: ties may fall either way
        var values = new double[tokens * (n + 1)];
        for (var t = 0; t < tokens; t++) {
          var order = gpu.random.ints(0, 2 * n + 1).distinct().limit(n + 1).toArray();
          for (var e = 0; e <= n; e++) {
            values[t * (n + 1) + e] = order[e] / 8.0 - 2;
          }
        }
        var logits = gpu.put(values, dtype);
        var z = gpu.normal(tokens * (all + 2), 1, 0, dtype);
        var indices = gpu.poisoned(4L * tokens * topK);
        var weights = gpu.poisoned(4L * tokens * topK);
        try (var moe = new FusedMoe(gpu.cuda, dtype, topK, 8, List.of(bank.target()), gpu.stream)) {
          moe.maskMany(
              0,
              logits.address(),
              n + 1,
              z.address(),
              all + 2,
              tokens,
              indices,
              weights,
              2,
              gpu.stream);
        }
        var expected = z.values().clone();
        var chosen = gpu.get(indices, tokens * topK, Dtype.I32);
        var given = gpu.get(weights, tokens * topK, Dtype.F32);
        for (var t = 0; t < tokens; t++) {
          var w =
              ReferenceLlama.weights(
                  Arrays.copyOfRange(logits.values(), t * (n + 1), t * (n + 1) + n), topK, 2);
          var at = 0;
          for (var e = 0; e < n; e++) {
            for (var r = 0; r < ranks[e]; r++, at++) {
              expected[t * (all + 2) + at] *= w[e] * bank.target().adapters().scales()[e];
            }
          }
          for (var j = 0; j < topK; j++) {
            assertThat(Math.abs(w[(int) chosen[t * topK + j]] - given[t * topK + j]))
                .isLessThan(1e-5);
          }
        }
        var got = gpu.get(z.address(), tokens * (all + 2), dtype);
        assertThat(Gpu.error(got, expected))
            .as(dtype + " " + n)
            .isLessThan(dtype == Dtype.F32 ? 1e-6 : dtype == Dtype.F16 ? 1e-3 : 6e-3);
      }
    }
  }

  @ParameterizedTest
  @EnumSource(names = {"F32", "F16", "BF16"})
  void rowsOfTheBaseModel(Dtype dtype) {
    try (var gpu = new Gpu(6)) {
      var kernels = new RowKernels(gpu.cuda, dtype);
      for (var hidden : new int[] {1, 37, 4096, 5000}) {
        var rows = 5;
        var h = gpu.normal(rows * hidden, 2, 0, dtype);
        var delta = gpu.normal(rows * hidden, 1, 0, dtype);
        var weight = gpu.normal(hidden, 0.2, 1, dtype);
        var out = gpu.poisoned((long) rows * hidden * dtype.bytes());
        kernels.norm(
            h.address(), delta.address(), weight.address(), out, rows, hidden, 1e-5f, gpu.stream);
        var expected = new double[rows * hidden];
        var sums = new double[rows * hidden];
        for (var row = 0; row < rows; row++) {
          double sum = 0;
          for (var i = row * hidden; i < (row + 1) * hidden; i++) {
            sums[i] = h.values()[i] + delta.values()[i];
            sum += Math.pow(Gpu.round(sums[i], dtype), 2);
          }
          for (var i = 0; i < hidden; i++) {
            expected[row * hidden + i] =
                Gpu.round(sums[row * hidden + i], dtype)
                    / Math.sqrt(sum / hidden + 1e-5)
                    * weight.values()[i];
          }
        }
        var tolerance = dtype == Dtype.F32 ? 1e-6 : dtype == Dtype.F16 ? 1e-3 : 6e-3;
        assertThat(Gpu.error(gpu.get(out, rows * hidden, dtype), expected)).isLessThan(tolerance);
        assertThat(Gpu.error(gpu.get(h.address(), rows * hidden, dtype), sums))
            .isLessThan(tolerance);

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

  @Test
  void damagedCacheEntriesAreMadeAgain(@org.junit.jupiter.api.io.TempDir java.nio.file.Path cache)
      throws Exception {
    try (var gpu = new Gpu(7)) {
      var source = "extern \"C\" __global__ void nothing() {}";
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
