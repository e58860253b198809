package org.meteora.router;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import ai.djl.Device;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.EnumSet;
import java.util.List;
import java.util.Optional;
import java.util.Random;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.meteora.Fixtures;
import org.meteora.UserException;
import org.meteora.backend.Backends;
import org.meteora.backend.cuda.CudaDecoder;
import org.meteora.checkpoint.LoadedModel;
import org.meteora.generate.GenerationConfig;
import org.meteora.generate.Generator;
import org.meteora.generate.Request;
import org.meteora.io.Jsonl;
import org.meteora.lora.AdapterBank;
import org.meteora.model.Llama;
import org.meteora.model.LlamaFactory;
import org.meteora.model.RandomLlama;
import org.meteora.model.SmallArchitecture;
import org.meteora.moe.Choice;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardMode;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.LayerGate;
import org.meteora.moe.Router;
import org.meteora.moe.RoutingSettings;
import org.meteora.nn.Projection;
import org.meteora.safetensors.SafetensorsFile;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/** Each router against PEFT, or against its formula in plain Java doubles. */
class RoutersTest {
  private static final List<String> NAMES = List.of("a", "b", "c", "d", "e");
  private static final int N = NAMES.size();
  private static final List<int[]> PROMPTS =
      List.of(new int[] {3, 17, 5, 60, 2, 9}, new int[] {8, 1}, new int[] {44, 6, 6, 31});

  static LoadedModel tiny(String device, String router, int k, double t) {
    var tiny = Fixtures.tinyLlama();
    return LoadedModel.load(
        new LoadedModel.Spec(
            tiny.resolve("base"),
            "meteora",
            Optional.empty(),
            Optional.of(tiny.resolve("adapters")),
            Optional.of(k),
            Optional.of(t),
            device,
            Optional.of("f32"),
            Flags.AUTO,
            router));
  }

  /**
   * Last-position logits of a left-padded batch, run in pieces of this many tokens.
   *
   * @return {@code (rows, vocab)}
   */
  static float[] logits(Llama llama, ForwardContext context, List<int[]> prompts, int piece) {
    int seq = prompts.stream().mapToInt(p -> p.length).max().orElseThrow();
    var padding = prompts.stream().mapToInt(p -> seq - p.length).toArray();
    try (var manager = llama.manager().newSubManager();
        var cache = llama.newCache(manager, padding, 1)) {
      float[] result = null;
      for (int from = 0; from < seq; from += piece) {
        int width = Math.min(piece, seq - from);
        var ids = new long[prompts.size() * width];
        for (int row = 0; row < prompts.size(); row++) {
          for (int i = 0; i < width; i++) {
            int at = from + i - padding[row];
            ids[row * width + i] = at < 0 ? 1 : prompts.get(row)[at];
          }
        }
        var input = manager.create(ids, Ops.shape(prompts.size(), width));
        result = llama.next(input, cache, context).toFloatArray();
      }
      return result;
    }
  }

  static double worst(float[] actual, float[] expected) {
    assertThat(actual).hasSameSizeAs(expected);
    return IntStream.range(0, actual.length)
        .mapToDouble(i -> Math.abs(actual[i] - expected[i]))
        .max()
        .orElse(0);
  }

  /** Against PEFT's Arrow, with its adapters' folders alone. */
  static void arrowAgreesWithPeft(String device, int k, double t) {
    var name = "arrow.k" + k + ".T" + (int) t;
    var prompts = Fixtures.prompts();
    var expected =
        Jsonl.readFile(Fixtures.tinyLlama().resolve("routers.json")).get(name + ".generated");
    float[] logits;
    try (var file = SafetensorsFile.open(Fixtures.tinyLlama().resolve("routers.safetensors"));
        var manager = Devices.newManager(Device.cpu())) {
      logits = file.read(manager, name).toFloatArray();
    }
    try (var model = tiny(device, "arrow", k, t)) {
      var context = model.generator().context();
      for (int piece : new int[] {1000, 1, 50}) {
        assertThat(worst(logits(model.llama(), context, prompts, piece), logits)).isLessThan(1e-4);
      }
      var config =
          model.generationConfig().withGreedy().withNoRepeatNgramSize(3).withMaxNewTokens(24);
      var together = model.generator().generate(prompts, config);
      for (int row = 0; row < prompts.size(); row++) {
        assertThat(together.get(row)).isEqualTo(Fixtures.ints(expected.get(row)));
        assertThat(model.generator().generate(List.of(prompts.get(row)), config).getFirst())
            .isEqualTo(together.get(row));
      }
      assertThat(model.describe())
          .containsEntry("router", "arrow")
          .containsEntry("meteora_ckpt_path", null)
          .containsEntry("routing_top_k", k);
    }
  }

  @ParameterizedTest
  @CsvSource({"1, 1", "2, 1", "2, 4", "3, 1"})
  void arrowIsPefts(int k, double t) {
    arrowAgreesWithPeft("cpu", k, t);
  }

  /** Unequal ranks and scales; adapter b acts on no o, adapter e on q and v alone. */
  static Llama model(NDManager manager, boolean gates) {
    manager.getEngine().setRandomSeed(8);
    var config = SmallArchitecture.create();
    var backend = Backends.of(manager, Dtype.F32);
    return LlamaFactory.build(
        config,
        manager,
        Dtype.F32,
        (name, shape) ->
            shape.length == 1
                ? manager.ones(Ops.shape(shape))
                : RandomLlama.normal(manager, Dtype.F32, 1 / Math.sqrt(shape[1]), shape),
        (layer, module) -> {
          boolean attention = module == Projection.Q || module == Projection.V;
          var ranks = new int[] {3, module == Projection.O ? 0 : 1, 5, 2, attention ? 4 : 0};
          var shape = config.shape(module);
          int total = Arrays.stream(ranks).sum();
          return backend.forInference(
              new AdapterBank(
                  gates
                      ? RandomLlama.normal(manager, Dtype.F32, 1 / Math.sqrt(shape[1]), N, shape[1])
                      : null,
                  RandomLlama.normal(manager, Dtype.F32, 1 / Math.sqrt(shape[1]), total, shape[1]),
                  RandomLlama.normal(manager, Dtype.F32, 0.2, shape[0], total),
                  ranks,
                  new double[] {2, 0.5, 1, 1.5, 3}));
        },
        backend,
        0);
  }

  /** s_i B_i A_i in full, {@code (out, in)}. */
  private static double[][] update(GatedLinear linear, int i) {
    var bank = linear.bank();
    int in = (int) linear.weight().getShape().get(1);
    int out = (int) linear.weight().getShape().get(0);
    int total = bank.totalRank();
    var a = bank.loraA().toFloatArray();
    var b = Ops.contiguous(bank.loraB()).toFloatArray();
    var result = new double[out][in];
    for (int r = bank.offsets()[i]; r < bank.offsets()[i] + bank.ranks()[i]; r++) {
      for (int o = 0; o < out; o++) {
        for (int c = 0; c < in; c++) {
          result[o][c] += bank.scales()[i] * b[o * total + r] * a[r * in + c];
        }
      }
    }
    return result;
  }

  private static double[] times(double[][] matrix, double[] x) {
    var y = new double[matrix.length];
    for (int row = 0; row < y.length; row++) {
      for (int c = 0; c < x.length; c++) {
        y[row] += matrix[row][c] * x[c];
      }
    }
    return y;
  }

  private static double norm(double[] x) {
    return Math.sqrt(Arrays.stream(x).map(each -> each * each).sum());
  }

  /** By a thousand power iterations on the whole update. */
  private static double[] firstRightSingularVector(double[][] update) {
    var transposed = new double[update[0].length][update.length];
    for (int o = 0; o < update.length; o++) {
      for (int c = 0; c < update[0].length; c++) {
        transposed[c][o] = update[o][c];
      }
    }
    var v = new Random(1).doubles(update[0].length, -1, 1).toArray();
    for (int step = 0; step < 1000; step++) {
      v = times(transposed, times(update, v));
      double norm = norm(v);
      v = Arrays.stream(v).map(each -> each / norm).toArray();
    }
    return v;
  }

  /** A linear's whole updates, and arrow's prototypes of those that are not 0. */
  private record Whole(List<double[][]> updates, double[][] prototypes, double[][] vectors) {
    static Whole of(GatedLinear linear) {
      int in = (int) linear.weight().getShape().get(1);
      var vectors = new double[N][];
      var updates = IntStream.range(0, N).mapToObj(i -> update(linear, i)).toList();
      var prototypes = new double[N][];
      for (int i = 0; i < N; i++) {
        int adapter = i;
        if (linear.bank().ranks()[i] > 0) {
          prototypes[i] = firstRightSingularVector(updates.get(i));
          vectors[i] =
              IntStream.range(0, in).mapToDouble(c -> VECTORS.of(adapter, linear)[c]).toArray();
        }
      }
      return new Whole(updates, prototypes, vectors);
    }
  }

  /** Phatgoose's vectors of random numbers. */
  static final Phatgoose.Vectors VECTORS =
      (adapter, linear) -> {
        var random =
            new Random(100 * adapter + 10 * linear.layer() + linear.projection().ordinal());
        var v = new float[(int) linear.weight().getShape().get(1)];
        for (int i = 0; i < v.length; i++) {
          v[i] = (float) (0.3 + random.nextGaussian());
        }
        return v;
      };

  /** A router over a model's adapters; those that are trained have random values. */
  static Router router(String name, Llama llama) {
    return switch (name) {
      case "phatgoose" -> new Phatgoose(llama, VECTORS);
      case LoraFlow.NAME ->
          new LoraFlow(
              llama.layers().stream()
                  .map(
                      layer -> {
                        int n = layer.projection(Projection.DOWN).bank().size();
                        int hidden = llama.config().hiddenSize();
                        return new LayerGate(
                            gaussian(llama.manager(), 0.3, n, hidden),
                            gaussian(llama.manager(), 0.2, n));
                      })
                  .toList());
      default -> Routers.of(name, llama, NAMES);
    };
  }

  /** The same on any device. */
  private static NDArray gaussian(NDManager manager, double deviation, long... shape) {
    var random = new Random(6);
    var values = new float[(int) Ops.shape(shape).size()];
    for (int i = 0; i < values.length; i++) {
      values[i] = (float) (deviation * random.nextGaussian());
    }
    return manager.create(values, Ops.shape(shape));
  }

  private static double[] standardized(double[] x) {
    double mean = Arrays.stream(x).average().orElseThrow();
    double variance = Arrays.stream(x).map(each -> (each - mean) * (each - mean)).sum() / x.length;
    return Arrays.stream(x).map(each -> (each - mean) / Math.sqrt(variance)).toArray();
  }

  /** What a router must give a token: a weight for each adapter. */
  private static double[] weights(String router, Whole linear, double[] x, int k, double t) {
    if (router.equals("uniform")) {
      return IntStream.range(0, N).mapToDouble(i -> 1.0 / N).toArray();
    }
    var scores = new double[N];
    for (int i = 0; i < N; i++) {
      scores[i] =
          linear.prototypes()[i] == null
              ? Double.NEGATIVE_INFINITY
              : switch (router) {
                case "spectr" -> norm(times(linear.updates().get(i), x));
                case "phatgoose" ->
                    times(new double[][] {standardized(linear.vectors()[i])}, standardized(x))[0]
                        / Math.sqrt(x.length);
                default -> Math.abs(times(new double[][] {linear.prototypes()[i]}, x)[0]);
              };
    }
    var best =
        IntStream.range(0, N)
            .boxed()
            .sorted((p, q) -> Double.compare(scores[q], scores[p]))
            .limit(k)
            .toList();
    var result = new double[N];
    best.forEach(i -> result[i] = Math.exp(scores[i] / t));
    double sum = Arrays.stream(result).sum();
    return Arrays.stream(result).map(each -> each / sum).toArray();
  }

  @ParameterizedTest
  @ValueSource(strings = {"arrow", "spectr", "phatgoose", "uniform"})
  void aLinearGivesWhatTheFormulaSays(String name) {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = model(manager, false);
      var router = router(name, llama);
      for (var projection : List.of(Projection.Q, Projection.O, Projection.DOWN)) {
        var linear = llama.layers().get(1).projection(projection);
        var whole = Whole.of(linear);
        int in = (int) linear.weight().getShape().get(1);
        int tokens = 30;
        var x = RandomLlama.normal(manager, Dtype.F32, 1, 2, tokens / 2, in);
        var values = x.toFloatArray();
        for (int k : new int[] {1, 3, 5}) {
          double t = 0.5 + k;
          var settings = new RoutingSettings(k, t, router);
          var expected = new float[tokens * (int) linear.weight().getShape().get(0)];
          var base = linear.base(x).toFloatArray();
          int out = expected.length / tokens;
          for (int token = 0; token < tokens; token++) {
            var row = new double[in];
            for (int c = 0; c < in; c++) {
              row[c] = values[token * in + c];
            }
            var weights = weights(name, whole, row, k, t);
            for (int i = 0; i < N; i++) {
              var added = times(whole.updates().get(i), row);
              for (int o = 0; o < out; o++) {
                expected[token * out + o] += (float) (weights[i] * added[o]);
              }
            }
          }
          for (int i = 0; i < expected.length; i++) {
            expected[i] += base[i];
          }
          for (var mode : EnumSet.complementOf(EnumSet.of(ForwardMode.INVARIANT))) {
            var context = ForwardContext.inference(settings, Flags.of(mode));
            assertThat(worst(linear.forward(x, context).y().toFloatArray(), expected))
                .as("%s %s k %d %s", name, projection, k, mode)
                .isLessThan(1e-4);
          }
        }
      }
    }
  }

  /** What kernels are given says the same: scores, and the adapters' updates. */
  @ParameterizedTest
  @ValueSource(strings = {"arrow", "spectr", "phatgoose"})
  void kernelsAreGivenTheSame(String name) {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = model(manager, false);
      var router = (Router.Scoring) router(name, llama);
      for (var projection : List.of(Projection.Q, Projection.O, Projection.DOWN)) {
        var linear = llama.layers().get(1).projection(projection);
        var bank = linear.bank();
        var given = router.forKernels(linear);
        int in = (int) linear.weight().getShape().get(1);
        int out = (int) linear.weight().getShape().get(0);
        var a = given.loraA().toFloatArray();
        var b = given.loraBTransposed().toFloatArray();
        assertThat(given.loraB().transpose().toFloatArray()).isEqualTo(b);
        var x = RandomLlama.normal(manager, Dtype.F32, 1, 1, in);
        var row = doubles(x.toFloatArray());
        var scores = router.scores(linear, x).toFloatArray();
        for (int i = 0; i < N; i++) {
          var left = update(linear, i); // less what the kernels are given: nothing
          double squares = 0;
          for (int r = bank.offsets()[i]; r < bank.offsets()[i] + bank.ranks()[i]; r++) {
            double z = 0;
            for (int c = 0; c < in; c++) {
              z += a[r * in + c] * row[c];
              for (int o = 0; o < out; o++) {
                left[o][c] -= given.scales()[i] * b[r * out + o] * a[r * in + c];
              }
            }
            squares += z * z;
          }
          assertThat(norm(Arrays.stream(left).flatMapToDouble(Arrays::stream).toArray()))
              .isLessThan(1e-4);
          if (bank.ranks()[i] == 0) {
            assertThat(scores[i]).isEqualTo(Float.NEGATIVE_INFINITY);
            continue;
          }
          double product = 0;
          for (int c = 0; c < in && given.gate() != null; c++) {
            product += given.gate().toFloatArray()[i * in + c] * row[c];
          }
          double mean = Arrays.stream(row).average().orElseThrow();
          double variance =
              Arrays.stream(row).map(each -> (each - mean) * (each - mean)).sum() / in;
          double expected =
              switch (given.scores()) {
                case PRODUCT -> product;
                case MAGNITUDE -> Math.abs(product);
                case STANDARDIZED -> product / Math.sqrt(variance);
                case NORM -> Math.sqrt(squares);
                case GIVEN, ALL -> throw new AssertionError("nothing is scored");
              };
          assertThat(scores[i]).isCloseTo((float) expected, within(1e-4f));
        }
      }
    }
  }

  private static double[] doubles(float[] values) {
    return IntStream.range(0, values.length).mapToDouble(i -> values[i]).toArray();
  }

  @ParameterizedTest
  @ValueSource(strings = {"gate", "arrow", "spectr", "phatgoose", "lora-flow", "uniform"})
  void paddingAndPiecesChangeNothing(String name) {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = model(manager, name.equals("gate"));
      var settings = new RoutingSettings(2, 0.7, router(name, llama));
      for (var mode : List.of(ForwardMode.AUTO, ForwardMode.MASKED)) {
        var context = ForwardContext.inference(settings, Flags.of(mode));
        var together = logits(llama, context, PROMPTS, 1000);
        assertThat(worst(logits(llama, context, PROMPTS, 1), together)).isLessThan(1e-4);
        for (int row = 0; row < PROMPTS.size(); row++) {
          var alone = logits(llama, context, List.of(PROMPTS.get(row)), 2);
          var own = Arrays.copyOfRange(together, row * alone.length, (row + 1) * alone.length);
          assertThat(worst(alone, own)).isLessThan(1e-4);
        }
      }
    }
  }

  /** LoRA-Flow's weights in plain doubles: from the input of q for all linears of a layer. */
  private static final class SlowFlow implements Router.Choosing {
    private final LoraFlow flow;
    private final double temperature;
    private double[][] weights;

    SlowFlow(LoraFlow flow, double temperature) {
      this.flow = flow;
      this.temperature = temperature;
    }

    @Override
    public String name() {
      return "slow";
    }

    @Override
    public Choice choose(GatedLinear linear, NDArray x, int rows) {
      int tokens = (int) x.getShape().get(0);
      if (linear.projection() == Projection.Q) {
        var h = x.toFloatArray();
        var w = flow.gates().get(linear.layer()).weight().toFloatArray();
        var b = flow.gates().get(linear.layer()).bias().toFloatArray();
        int d = h.length / tokens;
        weights = new double[tokens][N];
        for (int token = 0; token < tokens; token++) {
          double sum = 0;
          for (int i = 0; i < N; i++) {
            double logit = 0;
            for (int c = 0; c < d; c++) {
              logit += (double) w[i * d + c] * h[token * d + c];
            }
            weights[token][i] = Math.exp(logit / temperature);
            sum += weights[token][i];
          }
          for (int i = 0; i < N; i++) {
            weights[token][i] = weights[token][i] / sum + b[i];
          }
        }
      }
      var choice = new Choice(tokens, N);
      for (int at = 0; at < tokens * N; at++) {
        choice.indices()[at] = at % N;
        choice.weights()[at] = (float) weights[at / N][at % N];
      }
      return choice;
    }
  }

  @Test
  void loraFlowWeighsAllAdaptersOfALayerByItsInput() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = model(manager, false);
      double t = 0.7;
      var flow = (LoraFlow) router(LoraFlow.NAME, llama);
      for (var mode : EnumSet.complementOf(EnumSet.of(ForwardMode.INVARIANT))) {
        var settings = new RoutingSettings(2, t, flow);
        var context = ForwardContext.inference(settings, Flags.of(mode));
        var slow = context.withRouting(settings.withRouter(new SlowFlow(flow, t)));
        for (int piece : new int[] {1000, 2}) {
          assertThat(
                  worst(
                      logits(llama, context, PROMPTS, piece), logits(llama, slow, PROMPTS, piece)))
              .isLessThan(1e-4);
        }
      }
      var heard = new ArrayList<float[]>();
      var context =
          ForwardContext.inference(new RoutingSettings(2, t, flow), Flags.AUTO)
              .withListener(
                  Optional.of(
                      (layer, module, rows, tokens, topK, indices, weights) -> {
                        assertThat(topK).isEqualTo(N);
                        heard.add(Arrays.copyOf(weights, N));
                      }));
      logits(llama, context, PROMPTS, 1000);
      assertThat(heard).hasSize(2 * 7);
      assertThat(heard.get(1)).isEqualTo(heard.get(6)); // one choice for a layer
      for (int i = 1; i < N; i++) {
        assertThat(heard.getFirst()[i]).isLessThanOrEqualTo(heard.getFirst()[i - 1]);
      }
    }
  }

  /** x Wᵀ + σ(vᵀx) · update, of the only adapter. */
  @Test
  void aPhatgooseVectorLearnsWithItsAdapterAlone() {
    try (var manager = Devices.newManager(Device.cpu())) {
      int in = 12;
      int out = 7;
      var weight = RandomLlama.normal(manager, Dtype.F32, 0.3, out, in);
      var v = RandomLlama.normal(manager, Dtype.F32, 0.5, 1, in);
      var bank =
          new AdapterBank(
              v,
              RandomLlama.normal(manager, Dtype.F32, 0.3, 3, in),
              RandomLlama.normal(manager, Dtype.F32, 0.3, out, 3),
              new int[] {3},
              new double[] {1.5});
      var linear = new GatedLinear(weight, null, bank, Backends.of(manager, Dtype.F32));
      var whole = update(linear, 0);
      var x = RandomLlama.normal(manager, Dtype.F32, 1, 1, 9, in);
      var values = x.toFloatArray();
      var base = linear.base(x).toFloatArray();
      var expected = new float[base.length];
      for (int token = 0; token < 9; token++) {
        var row = IntStream.range(0, in).mapToDouble(new Row(values, token * in)::at).toArray();
        double logit = 0;
        for (int c = 0; c < in; c++) {
          logit += v.toFloatArray()[c] * row[c];
        }
        var added = times(whole, row);
        for (int o = 0; o < out; o++) {
          expected[token * out + o] =
              base[token * out + o] + (float) (added[o] / (1 + Math.exp(-logit)));
        }
      }
      for (var mode : EnumSet.complementOf(EnumSet.of(ForwardMode.INVARIANT))) {
        var settings = RoutingSettings.DEFAULT.withRouter(Phatgoose.ALONE);
        var context = ForwardContext.inference(settings, Flags.of(mode));
        for (var each : List.of(context, context.forTraining(false))) {
          assertThat(worst(linear.forward(x, each).y().toFloatArray(), expected)).isLessThan(1e-5);
        }
      }
    }
  }

  private record Row(float[] values, int from) {
    double at(int i) {
      return values[from + i];
    }
  }

  /** Adds nothing and keeps the input of one linear. */
  private static final class Spy implements Router.Choosing {
    private final GatedLinear at;
    private float[] seen;

    Spy(GatedLinear at) {
      this.at = at;
    }

    @Override
    public String name() {
      return "spy";
    }

    @Override
    public Choice choose(GatedLinear linear, NDArray x, int rows) {
      if (linear == at) {
        seen = x.toFloatArray();
      }
      return new Choice((int) x.getShape().get(0), 1);
    }
  }

  /** −Σ p log p of p = softmax(x). */
  private static double entropyOfSoftmax(double[] x) {
    double sum = Arrays.stream(x).map(Math::exp).sum();
    return -Arrays.stream(x).map(each -> Math.exp(each) / sum).map(p -> p * Math.log(p)).sum();
  }

  @ParameterizedTest
  @ValueSource(strings = {"logo", "logo-entropy"})
  void logoChoosesForAWholeSequenceWhatItsLastPromptTokenSays(String name) {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = model(manager, false);
      var decoding = Backends.decoding(llama);
      var probed = llama.layers().getLast().projection(Projection.Q);
      int k = 3;
      var greedy = GenerationConfig.greedy(List.of(), 1000).withMaxNewTokens(6);
      // the first row's answer ends at once: the others must keep their own adapters
      var expected = new ArrayList<int[]>();
      var chosen = new ArrayList<Router.Fixed>();
      for (var prompt : PROMPTS) {
        var spy = new Spy(probed);
        logits(
            llama,
            ForwardContext.inference(new RoutingSettings(k, 1, spy), Flags.AUTO),
            List.of(prompt),
            1000);
        var h = new double[32];
        for (int c = 0; c < h.length; c++) {
          h[c] = spy.seen[spy.seen.length - h.length + c];
        }
        var scores =
            IntStream.range(0, N)
                .mapToObj(i -> times(update(probed, i), h))
                .mapToDouble(o -> name.equals("logo") ? norm(o) : 1 / entropyOfSoftmax(o))
                .toArray();
        var best =
            IntStream.range(0, N)
                .boxed()
                .sorted((p, q) -> Double.compare(scores[q], scores[p]))
                .limit(k)
                .toList();
        double sum = best.stream().mapToDouble(i -> scores[i]).sum();
        var shares = best.stream().map(i -> (float) (scores[i] / sum)).toList();
        var fixed = new Router.Fixed("by hand", k, best, shares);
        chosen.add(fixed);
        expected.add(
            new Generator(
                    llama,
                    decoding,
                    ForwardContext.inference(new RoutingSettings(k, 1, fixed), Flags.AUTO))
                .generate(List.of(prompt), greedy)
                .getFirst());
      }
      var settings = new RoutingSettings(k, 1, Routers.of(name, llama, NAMES));
      var context = ForwardContext.inference(settings, Flags.AUTO);
      var probe = ((Router.Probing) settings.router()).probe();
      logits(llama, context.withRouting(settings.withRouter(probe)), PROMPTS, 1000);
      for (int row = 0; row < PROMPTS.size(); row++) {
        var actual = (Router.Fixed) probe.chosen(k).get(row);
        assertThat(actual.adapters()).isEqualTo(chosen.get(row).adapters());
        for (int i = 0; i < k; i++) {
          assertThat(actual.weights().get(i))
              .isCloseTo(chosen.get(row).weights().get(i), within(1e-5f));
        }
      }
      var heard = new ArrayList<String>();
      var requests =
          PROMPTS.stream()
              .map(
                  prompt ->
                      new Request(prompt, greedy, 0)
                          .listenedBy(
                              (layer, module, rows, tokens, topK, indices, weights) ->
                                  heard.add(
                                      prompt.length
                                          + Arrays.toString(Arrays.copyOf(indices, topK)))))
              .toList();
      var together = new Generator(llama, decoding, context).generate(requests, (row, token) -> {});
      for (int row = 0; row < PROMPTS.size(); row++) {
        assertThat(together.get(row)).isEqualTo(expected.get(row));
      }
      // a prefill and five steps; not the pass that looks at the prompts
      assertThat(heard).hasSize(PROMPTS.size() * 2 * 7 * 6);
      assertThat(heard.stream().distinct()).hasSize(PROMPTS.size());
      int stop = expected.getFirst()[1]; // rows that meet it leave, and the others go on
      var config = GenerationConfig.greedy(List.of(stop), 1000).withMaxNewTokens(6);
      var left = new Generator(llama, decoding, context).generate(PROMPTS, config);
      for (int row = 0; row < PROMPTS.size(); row++) {
        var whole = Arrays.stream(expected.get(row)).takeWhile(token -> token != stop).toArray();
        assertThat(left.get(row)).isEqualTo(whole);
      }
      assertThat(left.getFirst()).hasSize(1);
      assertThat(left.get(1).length + left.get(2).length).isGreaterThan(2);
    }
  }

  @Test
  void everyNameIsARouterOfItsOwn() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = model(manager, false);
      var routers = Routers.NAMES.stream().map(name -> router(name, llama)).toList();
      assertThat(routers).doesNotHaveDuplicates();
      assertThat(routers.getFirst()).isSameAs(Router.GATES);
    }
  }

  @Test
  void theOracleTakesTheTasksOwnAdapter() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = model(manager, false);
      var oracle = (Oracle) Routers.of("oracle", llama, NAMES);
      var config = GenerationConfig.greedy(List.of(), 1000).withMaxNewTokens(6);
      var generator =
          new Generator(
              llama,
              Backends.decoding(llama),
              ForwardContext.inference(RoutingSettings.DEFAULT.withRouter(oracle), Flags.AUTO));
      assertThat(
              generator
                  .withRouting(RoutingSettings.DEFAULT.withRouter(oracle.of("c")))
                  .generate(PROMPTS, config))
          .usingRecursiveComparison()
          .isEqualTo(
              generator
                  .withRouting(RoutingSettings.DEFAULT.withRouter(Router.fixed(2)))
                  .generate(PROMPTS, config));
      assertThatThrownBy(() -> oracle.of("f"))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("no adapter is called f");
      assertThatThrownBy(() -> generator.generate(PROMPTS, config))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("meteora eval");
    }
  }

  @Test
  void decodeStepsOnAGpuTakeAnyNumberOfAdaptersAToken() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var backend = Backends.of(manager, Dtype.F32);
      for (int n : new int[] {8, 9}) {
        var llama =
            RandomLlama.create(SmallArchitecture.create(), manager, Dtype.F32, n, 1, backend, 0);
        var routing = new RoutingSettings(2, 1, Router.uniform(n));
        var refusal = CudaDecoder.refusal(llama, 1, ForwardContext.inference(routing, Flags.AUTO));
        assertThat(refusal).isEmpty();
      }
    }
  }

  @Test
  void whatCannotBeIsSaid() {
    Fixtures.tinyLlama(); // without it nothing can be asked
    assertThatThrownBy(() -> tiny("cpu", "gates", 2, 1))
        .isInstanceOf(UserException.class)
        .hasMessage(
            "no router gates: choose one of gate, arrow, spectr, logo, logo-entropy, phatgoose,"
                + " lora-flow, uniform, oracle");
    try (var model = tiny("cpu", "uniform", 2, 1)) {
      assertThat(model.router("uniform")).isEqualTo(model.generator().context().routing().router());
      assertThat(model.router("arrow")).isSameAs(model.router("arrow"));
      assertThatThrownBy(() -> model.router("gate"))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("needs a MeteoRA checkpoint");
    }
    var tiny = Fixtures.tinyLlama();
    assertThatThrownBy(
            () ->
                LoadedModel.load(
                    new LoadedModel.Spec(
                        tiny.resolve("base"),
                        "task_a",
                        Optional.empty(),
                        Optional.of(tiny.resolve("adapters")),
                        Optional.empty(),
                        Optional.empty(),
                        "cpu",
                        Optional.empty(),
                        Flags.AUTO,
                        "arrow")))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("goes with --model meteora, not with task_a");
  }
}
