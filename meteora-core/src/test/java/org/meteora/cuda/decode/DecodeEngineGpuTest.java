package org.meteora.cuda.decode;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.Arrays;
import java.util.Random;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.meteora.cuda.decode.ReferenceLlama.Config;
import org.meteora.cuda.kernel.Gpu;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.cuda.kernel.MatrixVector.Tuning;
import org.meteora.nn.KvBlock;
import org.meteora.tensor.Dtype;

/** A whole decode step against the same model in float64. */
@Tag("gpu")
class DecodeEngineGpuTest {
  private static final int[] EIGHTS = {8, 8, 8, 8, 8};
  private static final int[] UNEQUAL = {1, 64, 3, 8, 17, 33};

  static Stream<Arguments> models() {
    var standard = Tuning.standard();
    var chosenOnly = new Tuning(standard.sharedBytes(), standard.inputBytes(), true, true, 0);
    var sliced = new Tuning(160 << 10, 16 << 10, true, true, standard.maxStackedABytes());
    var many = new int[70];
    Arrays.fill(many, 2);
    var ordinary = new int[28];
    Arrays.fill(ordinary, 8);
    var forty = new int[40];
    Arrays.fill(forty, 8);
    return Stream.of(
        Arguments.of(
            "odd sizes",
            new Config(Dtype.F32, 37, 3, 1, 10, 53, 61, 2, UNEQUAL, 2, true),
            standard,
            3),
        Arguments.of(
            "one row",
            new Config(Dtype.F32, 64, 4, 2, 16, 128, 100, 2, EIGHTS, 2, false),
            standard,
            1),
        Arguments.of(
            "rank 1",
            new Config(Dtype.F32, 64, 8, 2, 32, 96, 100, 2, new int[] {1, 1, 1}, 1, false),
            standard,
            5),
        Arguments.of(
            "chosen A",
            new Config(Dtype.F32, 40, 4, 4, 8, 72, 64, 2, UNEQUAL, 3, false),
            chosenOnly,
            16),
        Arguments.of(
            "70 adapters",
            new Config(Dtype.F32, 64, 4, 2, 16, 64, 64, 1, many, 8, false),
            standard,
            2),
        Arguments.of(
            "base",
            new Config(Dtype.F32, 64, 4, 2, 16, 64, 64, 2, new int[0], 2, false),
            standard,
            4),
        Arguments.of(
            "f16",
            new Config(Dtype.F16, 1064, 8, 2, 128, 1200, 333, 2, EIGHTS, 2, false),
            standard,
            4),
        Arguments.of(
            "bf16",
            new Config(Dtype.BF16, 1024, 8, 2, 128, 2000, 333, 2, EIGHTS, 2, true),
            standard,
            1),
        Arguments.of(
            "gates first",
            new Config(Dtype.BF16, 4352, 8, 2, 128, 2304, 333, 1, EIGHTS, 2, true),
            standard,
            5),
        Arguments.of(
            "gates first, 16 rows",
            new Config(Dtype.BF16, 4352, 8, 2, 128, 2304, 333, 1, ordinary, 2, false),
            standard,
            16),
        Arguments.of(
            "gates first, the choice taken over, 16 rows",
            new Config(Dtype.BF16, 4352, 8, 2, 128, 2304, 333, 1, forty, 2, false),
            standard,
            16),
        Arguments.of(
            "bf16 16 rows",
            new Config(Dtype.BF16, 1024, 8, 2, 128, 2064, 333, 2, EIGHTS, 2, false),
            standard,
            16),
        Arguments.of(
            "bf16 28 adapters",
            new Config(Dtype.BF16, 520, 8, 2, 64, 1000, 333, 2, ordinary, 2, true),
            standard,
            8),
        Arguments.of(
            "f16 multiples of 8, 4 of 6",
            new Config(
                Dtype.F16, 576, 6, 2, 96, 700, 77, 2, new int[] {8, 64, 16, 24, 40, 32}, 4, false),
            standard,
            11),
        Arguments.of(
            "bf16 sliced",
            new Config(Dtype.BF16, 1536, 8, 2, 64, 2560, 333, 2, UNEQUAL, 2, false),
            sliced,
            13),
        Arguments.of(
            "bf16 chosen A",
            new Config(Dtype.BF16, 512, 8, 8, 64, 1032, 333, 2, EIGHTS, 2, false),
            chosenOnly,
            6),
        Arguments.of(
            "bf16 odd",
            new Config(Dtype.BF16, 333, 3, 3, 18, 259, 77, 2, UNEQUAL, 2, true),
            standard,
            9),
        Arguments.of(
            "17 rows, odd sizes",
            new Config(Dtype.F32, 37, 3, 1, 10, 53, 61, 2, UNEQUAL, 2, true),
            standard,
            17),
        Arguments.of(
            "bf16 40 rows",
            new Config(Dtype.BF16, 1024, 8, 2, 128, 2064, 333, 2, EIGHTS, 2, true),
            standard,
            40),
        Arguments.of(
            "bf16 all products our own, 32 rows",
            new Config(Dtype.BF16, 320, 4, 2, 64, 640, 96, 2, UNEQUAL, 2, true),
            standard,
            32),
        Arguments.of(
            "f16 all products our own, 50 rows",
            new Config(Dtype.F16, 1024, 8, 2, 128, 2048, 336, 2, ordinary, 2, false),
            standard,
            50),
        Arguments.of(
            "bf16 gate and up chosen for while they are multiplied, 64 rows",
            new Config(Dtype.BF16, 512, 8, 4, 64, 2048, 336, 2, ordinary, 2, true),
            standard,
            64),
        Arguments.of(
            "bf16 28 adapters, 72 rows",
            new Config(Dtype.BF16, 1024, 16, 8, 64, 1536, 333, 1, ordinary, 2, false),
            standard,
            72),
        Arguments.of(
            "bf16 one launch for gate, up and SiLU, 140 rows",
            new Config(Dtype.BF16, 512, 8, 4, 64, 1152, 336, 1, EIGHTS, 2, true),
            standard,
            140),
        Arguments.of(
            "f16 the same, 28 adapters, 70 rows",
            new Config(Dtype.F16, 512, 8, 4, 64, 704, 336, 1, ordinary, 2, false),
            standard,
            70),
        Arguments.of(
            "bf16 the same without adapters, 130 rows",
            new Config(Dtype.BF16, 512, 8, 4, 64, 704, 336, 1, new int[0], 2, true),
            standard,
            130),
        Arguments.of(
            "bf16 odd, 100 rows",
            new Config(Dtype.BF16, 333, 3, 3, 18, 259, 77, 1, UNEQUAL, 2, true),
            standard,
            100),
        Arguments.of(
            "f16 256 rows",
            new Config(Dtype.F16, 576, 6, 2, 96, 700, 77, 1, ordinary, 4, false),
            standard,
            256),
        Arguments.of(
            "base, 64 rows",
            new Config(Dtype.F32, 64, 4, 2, 16, 64, 64, 2, new int[0], 2, false),
            standard,
            64),
        Arguments.of(
            "one adapter for some linears alone, 33 rows",
            new Config(Dtype.F32, 64, 4, 2, 16, 64, 64, 2, new int[] {4}, 1, false),
            standard,
            33),
        Arguments.of(
            "bf16 small, 65 rows",
            new Config(Dtype.BF16, 64, 4, 2, 64, 96, 61, 2, UNEQUAL, 2, true),
            standard,
            65));
  }

  @BeforeAll
  static void compile() {
    var configs =
        Stream.of(
            models().map(each -> (Config) each.get()[1]),
            heads()
                .map(Arguments::get)
                .map(h -> attending((Dtype) h[0], (int) h[1], (int) h[2], (int) h[3])),
            replayed());
    Gpu.compileAhead(
        configs
            .flatMap(each -> each)
            .map(
                c ->
                    Kernels.Constants.ofSteps(
                        c.dtype(),
                        Math.max(1, c.topK()),
                        Math.max(1, c.ranks().length),
                        c.heads(),
                        c.kvHeads(),
                        c.headDim())));
  }

  @ParameterizedTest(name = "{0}")
  @MethodSource("models")
  void agreesWithFloat64(String name, Config config, Tuning tuning, int rows) {
    try (var gpu = new Gpu(name.hashCode())) {
      var reference = new ReferenceLlama(gpu, config, rows + 2, 200);
      reference.temperature = 3;
      var random = new Random(5);
      try (var engine =
          new DecodeEngine(
              gpu.cuda, reference.model, reference.cache, rows, reference.maxBlocks(), 1, tuning)) {
        engine.temperature(3);
        var slots = new int[rows];
        for (var i = 0; i < rows; i++) {
          slots[i] = rows + 1 - i;
        }
        var lengths = new int[rows];
        engine.rows(reference.tables(slots), lengths);
        double worst = 0;
        // A row leaves the comparison once a choice of adapters hangs by a thread: rounding may
        // turn it.
        var decided = new boolean[rows];
        Arrays.fill(decided, true);
        var compared = 0;
        var steps = config.hidden() > 512 ? 4 : rows > 16 ? 12 : 90;
        for (var step = 0; step < steps; step++) {
          var tokens = random.ints(rows, 0, config.vocab()).toArray();
          var next = engine.step(tokens);
          var logits = gpu.get(engine.logits(), rows * config.vocab(), Dtype.F32);
          for (var i = 0; i < rows; i++) {
            var expected = reference.step(tokens[i], slots[i], lengths[i]++);
            var got = Arrays.copyOfRange(logits, i * config.vocab(), (i + 1) * config.vocab());
            assertThat(got[next[i]]).isEqualTo(Arrays.stream(got).max().orElseThrow());
            decided[i] &=
                config.dtype() == Dtype.F32
                    || reference.margin > (config.dtype() == Dtype.F16 ? 0.01 : 0.06);
            if (decided[i]) {
              compared++;
              worst = Math.max(worst, Gpu.error(got, expected));
              assertThat(Gpu.error(got, expected))
                  .as("step %d row %d", step, i)
                  .isLessThan(
                      config.dtype() == Dtype.F32
                          ? 1e-5
                          : config.dtype() == Dtype.F16 ? 5e-3 : 3e-2);
            }
          }
        }
        System.err.printf("%s: error %.2e over %d%n", name, worst, compared);
        assertThat(compared).isGreaterThan(0);
      }
    }
  }

  static Stream<Arguments> heads() {
    return Stream.of(
        Arguments.of(Dtype.BF16, 8, 2, 128, 16, 1600),
        Arguments.of(Dtype.BF16, 32, 8, 128, 1, 1600),
        Arguments.of(Dtype.BF16, 32, 8, 128, 1, 6000),
        Arguments.of(Dtype.BF16, 4, 4, 64, 16, 1600),
        Arguments.of(Dtype.F16, 6, 2, 64, 7, 1600),
        Arguments.of(Dtype.F16, 4, 2, 128, 4, 5000),
        Arguments.of(Dtype.BF16, 16, 2, 128, 5, 6000),
        Arguments.of(Dtype.BF16, 4, 2, 80, 5, 1600),
        Arguments.of(Dtype.F32, 8, 2, 128, 6, 1600),
        Arguments.of(Dtype.BF16, 8, 2, 128, 24, 3000),
        Arguments.of(Dtype.F32, 4, 2, 32, 20, 700));
  }

  private static Config attending(Dtype dtype, int heads, int kvHeads, int headDim) {
    return new Config(dtype, 64, heads, kvHeads, headDim, 64, 50, 1, new int[0], 1, false);
  }

  /** Attention from one column to more than one cluster of blocks takes, and at their edges. */
  @ParameterizedTest(name = "{0}, {1} heads over {2} of {3}, {4} rows, up to {5}")
  @MethodSource("heads")
  void attendsToManyColumns(Dtype dtype, int heads, int kvHeads, int headDim, int rows, int most) {
    var config = attending(dtype, heads, kvHeads, headDim);
    int[] columns = {0, 1, 14, 15, 16, 17, 62, 63, 64, 65, 127, 128, 129, 511, 640, most - 100};
    try (var gpu = new Gpu(heads * 1000L + headDim + most)) {
      var reference = new ReferenceLlama(gpu, config, rows, most);
      try (var engine =
          new DecodeEngine(
              gpu.cuda,
              reference.model,
              reference.cache,
              rows,
              reference.maxBlocks(),
              1,
              Tuning.standard())) {
        double worst = 0;
        for (var from = 0; from < columns.length; from += rows) {
          var slots = new int[rows];
          var lengths = new int[rows];
          for (var i = 0; i < rows; i++) {
            slots[i] = rows - 1 - i;
            lengths[i] = columns[(from + i) % columns.length];
            reference.fill(gpu, slots[i], lengths[i]);
          }
          engine.rows(reference.tables(slots), lengths);
          for (var step = 0; step < 3; step++) {
            var tokens = gpu.random.ints(rows, 0, config.vocab()).toArray();
            engine.step(tokens);
            var logits = gpu.get(engine.logits(), rows * config.vocab(), Dtype.F32);
            for (var i = 0; i < rows; i++) {
              var expected = reference.step(tokens[i], slots[i], lengths[i]++);
              var got = Arrays.copyOfRange(logits, i * config.vocab(), (i + 1) * config.vocab());
              var error = Gpu.error(got, expected);
              worst = Math.max(worst, error);
              assertThat(error)
                  .as("%d columns, step %d", lengths[i], step)
                  .isLessThan(dtype == Dtype.F32 ? 2e-5 : dtype == Dtype.F16 ? 3e-3 : 2e-2);
            }
          }
        }
        System.err.printf("attention: error %.2e%n", worst);
      }
    }
  }

  static Stream<Config> replayed() {
    return Stream.of(
        new Config(Dtype.BF16, 1024, 8, 2, 64, 2048, 1000, 2, EIGHTS, 2, false),
        // large enough for gates that come first, in three of four products
        new Config(Dtype.BF16, 4352, 8, 2, 64, 2304, 1000, 1, EIGHTS, 2, false));
  }

  @ParameterizedTest
  @MethodSource("replayed")
  void graphEqualsEagerWhileRowsComeAndGo(Config config) {
    try (var gpu = new Gpu(1)) {
      var most = 70; // steps by products of our own and by cuBLAS take turns
      var reference = new ReferenceLlama(gpu, config, most, 700);
      var blocks = reference.cache.blocks();
      var again =
          new KvMemory(copies(gpu, config, blocks), copies(gpu, config, blocks), blocks, 700);
      var room = reference.maxBlocks();
      try (var graph =
              new DecodeEngine(
                  gpu.cuda, reference.model, reference.cache, most, room, 1, Tuning.standard());
          var eager =
              new DecodeEngine(
                  gpu.cuda, reference.model, again, most, room, 1, Tuning.standard())) {
        eager.useGraphs(false);
        var lengths = new int[most];
        var random = new Random(2);
        for (var round = 0; round < 12; round++) {
          var rows = 1 + random.nextInt(round % 2 == 0 ? 16 : most);
          var slots = random.ints(0, most).distinct().limit(rows).toArray();
          var length = Arrays.stream(slots).map(s -> lengths[s]).toArray();
          graph.rows(reference.tables(slots), length);
          eager.rows(reference.tables(slots), length);
          var a = random.ints(rows, 0, 1000).toArray();
          var b = a;
          for (var step = 0; step < 25; step++) {
            a = graph.step(a);
            b = eager.step(b);
            assertThat(a).isEqualTo(b);
            assertThat(gpu.cuda.download(graph.logits(), 4L * rows * 1000, gpu.stream))
                .isEqualTo(gpu.cuda.download(eager.logits(), 4L * rows * 1000, gpu.stream));
          }
          for (var slot : slots) {
            lengths[slot] += 25;
          }
        }
        var before = gpu.cuda.memory().free();
        graph.rows(reference.tables(3), new int[1]);
        var token = new int[] {1};
        for (var step = 0; step < 600; step++) {
          token = graph.step(token);
        }
        assertThat(before - gpu.cuda.memory().free())
            .as("memory taken by 600 steps")
            .isLessThan(4 << 20);
      }
    }
  }

  private static long[] copies(Gpu gpu, Config config, int blocks) {
    var addresses = new long[config.layers()];
    for (var i = 0; i < addresses.length; i++) {
      addresses[i] =
          gpu.poisoned(2L * blocks * config.kvHeads() * KvBlock.TOKENS * config.headDim());
    }
    return addresses;
  }
}
