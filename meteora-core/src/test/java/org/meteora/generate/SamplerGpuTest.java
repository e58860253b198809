package org.meteora.generate;

import static org.assertj.core.api.Assertions.assertThat;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.Random;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.DeviceMemory;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.kernel.DeviceSampler;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.tensor.Dtype;

/**
 * The kernels that choose tokens against the {@link Sampler}: the same tokens, not similar ones.
 */
@Tag("gpu")
class SamplerGpuTest {
  /** Rows of logits on the GPU, and the launches that choose from them. */
  private static final class Rows implements AutoCloseable {
    final Cuda cuda = Cuda.device(0);
    final Stream stream = Stream.create(cuda);
    final Arena arena = Arena.ofConfined();
    final int rows;
    final int vocab;
    final int parts;
    final DeviceMemory parameters;
    final DeviceMemory logits;
    final DeviceMemory rest;
    final MemorySegment host = arena.allocate(DeviceSampler.BYTES, 16);
    final MemorySegment values;
    final DeviceSampler choice;

    Rows(int rows, int vocab, int parts) {
      this.rows = rows;
      this.vocab = vocab;
      this.parts = parts;
      parameters = cuda.allocateZeroed(DeviceSampler.BYTES, stream);
      logits = cuda.allocateZeroed(4L * parts * rows * vocab, stream);
      rest = cuda.allocateZeroed(4L * rows * (2 * DeviceSampler.BLOCKS + 2), stream);
      values = arena.allocate(4L * parts * rows * vocab, 16);
      choice = new DeviceSampler(host);
    }

    /** Chooses from these logits, {@code (parts, rows, vocab)}. */
    int[] choose(float[] from) {
      MemorySegment.copy(from, 0, values, ValueLayout.JAVA_FLOAT, 0, from.length);
      cuda.toDevice(logits.address(), values, 4L * from.length, stream);
      return chooseAgain();
    }

    /** Says that every row has so many tokens; 0 at first. */
    void lengths(int tokens) {
      var all = arena.allocate(4L * rows, 4);
      all.asByteBuffer().order(ByteOrder.nativeOrder()).asIntBuffer().put(filled(tokens));
      cuda.toDevice(
          rest.address() + 4L * rows * (2 * DeviceSampler.BLOCKS + 1), all, 4L * rows, stream);
    }

    private int[] filled(int value) {
      var values = new int[rows];
      Arrays.fill(values, value);
      return values;
    }

    void greedy() {
      IntStream.range(0, rows).forEach(choice::greedy);
    }

    void sampling(float scale, int topK, long topP) {
      IntStream.range(0, rows).forEach(row -> choice.sampling(row, scale, topK, topP));
    }

    int[] chooseAgain() {
      cuda.toDevice(parameters.address(), host, DeviceSampler.BYTES, stream);
      long best = rest.address();
      long bestAt = best + 4L * rows * DeviceSampler.BLOCKS;
      long tokens = bestAt + 4L * rows * DeviceSampler.BLOCKS;
      var kernels = Kernels.of(cuda, new Kernels.Constants(Dtype.BF16, 2, 32, 64, 1));
      DeviceSampler.launches(
              kernels,
              new DeviceSampler.SampleTokens(
                  logits.address(),
                  best,
                  bestAt,
                  tokens,
                  tokens + 4L * rows,
                  parameters.address(),
                  0,
                  vocab,
                  parts,
                  rows,
                  DeviceSampler.BLOCKS,
                  0),
              false)
          .forEach(launch -> launch.on(stream));
      var bytes =
          ByteBuffer.wrap(cuda.download(tokens, 4L * rows, stream)).order(ByteOrder.nativeOrder());
      var result = new int[rows];
      for (int i = 0; i < rows; i++) {
        result[i] = bytes.getInt();
      }
      return result;
    }

    @Override
    public void close() {
      stream.synchronize();
      parameters.close();
      logits.close();
      rest.close();
      stream.close();
      arena.close();
    }
  }

  private static float[] logits(Random random, int count) {
    var values = new float[count];
    double spread = new double[] {0, 0.01, 1, 3, 10, 40}[random.nextInt(6)];
    boolean coarse = random.nextInt(3) == 0; // many ties
    for (int i = 0; i < count; i++) {
      double value = random.nextGaussian() * spread;
      values[i] = (float) (coarse ? Math.rint(value * 4) / 4 : value);
      if (random.nextInt(50) == 0) {
        values[i] = Float.NEGATIVE_INFINITY;
      }
    }
    if (random.nextInt(8) == 0) {
      values[random.nextInt(count)] = 100; // nearly certain
    }
    return values;
  }

  @ParameterizedTest
  @ValueSource(ints = {1, 5, 31, 128, 129, 512, 777, 4097, 32000, 128256, 151937})
  void choosesWhatTheHostChooses(int vocab) {
    Assumptions.assumeTrue(Cuda.isAvailable(), "no CUDA GPU on this machine");
    var random = new Random(vocab);
    int compared = 0;
    for (int parts : new int[] {1, 3}) {
      int rows = vocab > 100000 ? 5 : 16;
      try (var gpu = new Rows(rows, vocab, parts)) {
        for (int round = 0; round < (vocab > 10000 ? 12 : 60); round++) {
          var all = logits(random, parts * rows * vocab);
          double temperature = new double[] {0.1, 0.6, 1, 1.3, 2}[random.nextInt(5)];
          double topP = new double[] {1, 1, 0.9, 0.5, 0.1, 0.999, 1e-9}[random.nextInt(7)];
          int topK = new int[] {0, 0, 1, 50, vocab, 3, vocab / 2}[random.nextInt(7)];
          boolean sample = random.nextInt(4) > 0;
          var config =
              sample
                  ? SamplerTest.GREEDY.withSampling(temperature, topP, topK, random.nextLong())
                  : SamplerTest.GREEDY;
          if (sample) {
            gpu.sampling(Sampler.scale(temperature), topK, Sampler.fixed(topP));
          } else {
            gpu.greedy();
          }
          var expected = new int[rows];
          for (int row = 0; row < rows; row++) {
            var own = new float[vocab];
            for (int i = 0; i < vocab; i++) {
              own[i] = all[row * vocab + i];
              for (int part = 1; part < parts; part++) {
                own[i] += all[(part * rows + row) * vocab + i];
              }
            }
            var banned =
                random
                    .ints(random.nextInt(3) == 0 ? DeviceSampler.MAX_BANNED : 0, 0, vocab)
                    .toArray();
            if (banned.length > 0) {
              banned[0] = Sampler.argMax(own, 0, vocab);
            }
            for (int token : banned) {
              own[token] = Float.NEGATIVE_INFINITY;
            }
            var sampler = new Sampler(config, row);
            long uniform = random.nextInt(20) == 0 ? -1 : sampler.uniform();
            gpu.choice.row(row, uniform, banned);
            expected[row] = sampler.choose(own, 0, vocab, uniform);
            compared++;
          }
          assertThat(gpu.choose(all))
              .as("vocabulary %d, %d parts, %s", vocab, parts, config)
              .isEqualTo(expected);
        }
      }
    }
    System.err.println("vocabulary " + vocab + ": " + compared + " tokens as on the host");
  }

  @Test
  void drawsFollowTheKeptDistribution() {
    Assumptions.assumeTrue(Cuda.isAvailable(), "no CUDA GPU on this machine");
    var random = new Random(3);
    try (var gpu = new Rows(16, 300, 1)) {
      for (double topP : new double[] {1, 0.8}) {
        for (int topK : new int[] {0, 40}) {
          var one = new float[300];
          for (int i = 0; i < one.length; i++) {
            one[i] = (float) (2 * random.nextGaussian());
          }
          var all = new float[16 * 300];
          for (int row = 0; row < 16; row++) {
            System.arraycopy(one, 0, all, row * 300, 300);
          }
          gpu.sampling(Sampler.scale(0.8), topK, Sampler.fixed(topP));
          var counts = new int[300];
          for (int round = 0; round < 2000; round++) {
            for (int row = 0; row < 16; row++) {
              gpu.choice.row(row, random.nextLong(), new int[0]);
            }
            var tokens = round == 0 ? gpu.choose(all) : gpu.chooseAgain();
            Arrays.stream(tokens).forEach(token -> counts[token]++);
          }
          assertThat(
                  SamplerTest.deviations(counts, SamplerTest.expected(one, 0.8, topP, topK), 32000))
              .as("p %s, k %d", topP, topK)
              .isLessThan(5);
        }
      }
    }
  }

  /** Rows with a logit that is no number or infinite, beside others, which they do not change. */
  @ParameterizedTest
  @ValueSource(ints = {7, 4097, 128256})
  void findsLogitsThatAreNotFinite(int vocab) {
    Assumptions.assumeTrue(Cuda.isAvailable(), "no CUDA GPU on this machine");
    var random = new Random(5);
    for (boolean sample : new boolean[] {false, true}) {
      try (var gpu = new Rows(6, vocab, 2)) {
        var all = new float[2 * 6 * vocab];
        for (int i = 0; i < all.length; i++) {
          all[i] = (float) random.nextGaussian();
        }
        if (sample) {
          gpu.sampling(Sampler.scale(0.8), 3, Sampler.fixed(0.9));
        } else {
          gpu.greedy();
        }
        for (int row = 0; row < 6; row++) {
          gpu.choice.row(row, random.nextLong(), new int[] {vocab - 1});
        }
        var expected = gpu.choose(all);
        assertThat(expected).doesNotContain(DeviceSampler.NOT_FINITE);
        all[1 * vocab + vocab / 2] = Float.NaN; // one logit, in the first part
        all[(6 + 2) * vocab] = -Float.NaN; // in the second
        all[3 * vocab + vocab - 2] = Float.POSITIVE_INFINITY;
        Arrays.fill(all, 4 * vocab, 5 * vocab, Float.NaN);
        all[5 * vocab + 1 + expected[5] % (vocab - 2)] = Float.NEGATIVE_INFINITY;
        for (int row = 1; row < 5; row++) {
          expected[row] = DeviceSampler.NOT_FINITE;
        }
        assertThat(gpu.choose(all)).as("sampling %s", sample).isEqualTo(expected);
        gpu.lengths(-1);
        assertThat(gpu.chooseAgain())
            .as("rows that are not there")
            .doesNotContain(DeviceSampler.NOT_FINITE);
      }
    }
  }

  /** What a choice takes, printed for the record; the base model's step is 4.4 ms. */
  @Test
  void takesLittleTime() {
    Assumptions.assumeTrue(Cuda.isAvailable(), "no CUDA GPU on this machine");
    var random = new Random(4);
    for (int rows : new int[] {1, 16}) {
      try (var gpu = new Rows(rows, 128256, 1)) {
        var all = new float[rows * 128256];
        for (int i = 0; i < all.length; i++) {
          all[i] = (float) (2.5 * random.nextGaussian());
        }
        for (var wish : new double[][] {{0, 1, 0}, {1, 1, 0}, {0.6, 0.9, 0}, {0.6, 0.9, 50}}) {
          if (wish[0] == 0) {
            gpu.greedy();
          } else {
            gpu.sampling(Sampler.scale(wish[0]), (int) wish[2], Sampler.fixed(wish[1]));
          }
          for (int row = 0; row < rows; row++) {
            gpu.choice.row(row, random.nextLong(), new int[0]);
          }
          gpu.choose(all);
          int runs = 200;
          long start = System.nanoTime();
          for (int run = 0; run < runs; run++) {
            gpu.chooseAgain();
          }
          double each = (System.nanoTime() - start) / 1e3 / runs;
          System.err.printf(
              "%d rows, T %.1f, p %.1f, k %.0f: %.0f us with its copies%n",
              rows, wish[0], wish[1], wish[2], each);
          assertThat(each).isLessThan(2000);
        }
      }
    }
  }
}
