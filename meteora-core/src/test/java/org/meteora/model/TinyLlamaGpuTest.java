package org.meteora.model;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Optional;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.meteora.Fixtures;
import org.meteora.backend.Backends;
import org.meteora.backend.cuda.CudaDecoder;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.kernel.Gpu;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.generate.GenerationConfig;
import org.meteora.generate.Request;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardMode;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.RoutingSettings;
import org.meteora.nn.Projection;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

@Tag("gpu")
class TinyLlamaGpuTest extends TinyLlamaChecks {
  @Override
  String device() {
    return "cuda";
  }

  @BeforeAll
  static void compile() {
    Gpu.compileAhead(
        Stream.of(Dtype.F32, Dtype.BF16, Dtype.F16)
            .flatMap(
                dtype ->
                    IntStream.of(1, 2, 3)
                        .boxed()
                        .flatMap(
                            k ->
                                Stream.of(
                                    Kernels.Constants.ofSteps(dtype, k, 4, 4, 2, 16),
                                    Kernels.Constants.ofLayers(dtype, k, 4)))));
  }

  /** The decode engine against the model's own steps, while rows finish and the cache grows. */
  @Test
  void theEngineContinuesAsTheModelDoes() {
    var prompts = new ArrayList<>(Fixtures.prompts());
    try (var model =
        load("meteora.k2.T15", Fixtures.tinyLlama().resolve("base"), Optional.empty())) {
      int most = model.llama().config().maxPositionEmbeddings();
      var config =
          model
              .generationConfig()
              .withGreedy()
              .withNoRepeatNgramSize(4)
              .withMaxLength(most)
              .withMaxNewTokens(600);
      for (var each :
          List.of(
              config,
              config.withNoRepeatNgramSize(0).withMaxNewTokens(40),
              config.withNoRepeatNgramSize(1).withMaxNewTokens(60), // more bans than a step takes
              config.withNoRepeatNgramSize(2).withMaxNewTokens(60),
              config.withSampling(0.9, 0.95, 40, 3).withMaxNewTokens(60))) {
        var auto = model.generator();
        var gather = auto.with(auto.context().withMode(ForwardMode.GATHER));
        assertThat(CudaDecoder.refusal(model.llama(), prompts.size(), auto.context())).isEmpty();
        var engine = auto.generate(prompts, each);
        assertThat(CudaDecoder.refusal(model.llama(), prompts.size(), gather.context()))
            .isPresent();
        var eager = gather.generate(prompts, each);
        for (int row = 0; row < prompts.size(); row++) {
          assertThat(engine.get(row)).as("row %d of %s", row, each).isEqualTo(eager.get(row));
        }
        var lengths = new HashSet<Integer>();
        engine.forEach(tokens -> lengths.add(tokens.length));
        System.err.println("continuations of lengths " + lengths);
      }
      var small = config.withMaxNewTokens(8);
      model.generator().generate(prompts, small);
      long free = Cuda.device(0).memory().free();
      for (int round = 0; round < 20; round++) {
        model.generator().generate(prompts, small);
      }
      assertThat(free - Cuda.device(0).memory().free())
          .as("memory taken by 20 generations")
          .isLessThan(8 << 20);
      var many = new ArrayList<int[]>();
      while (many.size() < 17) {
        many.addAll(prompts);
      }
      assertThat(model.generator().generate(many, small).getFirst())
          .isEqualTo(model.generator().generate(prompts, small).getFirst());
    }
  }

  /** One call of a routing listener. */
  private record Heard(int layer, int module, int topK, int[] indices, float[] weights) {}

  /**
   * What the listener hears of the fused prefill and of the graph's steps, against the masked
   * prefill and the model's own steps, while rows leave; listening changes no token.
   */
  @Test
  void theRoutingOfTheGraphIsThatOfTheModel() {
    try (var model =
        load("meteora.k2.T15", Fixtures.tinyLlama().resolve("base"), Optional.empty())) {
      var llama = model.llama();
      var few = List.of(new int[] {5, 9, 200, 7, 31}, new int[] {8, 300, 11}, new int[] {77});
      for (var prompts : List.of(Fixtures.prompts(), few)) {
        int longest = prompts.stream().mapToInt(prompt -> prompt.length).max().orElseThrow();
        var config =
            model.generationConfig().withGreedy().withMaxLength(longest + 20).withMaxNewTokens(60);
        var silent = model.generator().generate(prompts, config);
        var auto = model.generator();
        assertThat(CudaDecoder.refusal(llama, prompts.size(), auto.context())).isEmpty();
        var graph = new ArrayList<List<Heard>>();
        var recorded = auto.generate(heard(prompts, config, graph), (row, token) -> {});
        var gather = auto.with(auto.context().withMode(ForwardMode.GATHER));
        var eager = new ArrayList<List<Heard>>();
        var expected = gather.generate(heard(prompts, config, eager), (row, token) -> {});
        for (int row = 0; row < prompts.size(); row++) {
          assertThat(recorded.get(row)).isEqualTo(silent.get(row)).isEqualTo(expected.get(row));
        }

        double worst = 0;
        int calls = 0;
        for (int row = 0; row < prompts.size(); row++) {
          assertThat(graph.get(row)).hasSameSizeAs(eager.get(row));
          for (int call = 0; call < graph.get(row).size(); call++) {
            var a = graph.get(row).get(call);
            var b = eager.get(row).get(call);
            assertThat(List.of(a.layer, a.module, a.topK))
                .isEqualTo(List.of(b.layer, b.module, b.topK));
            assertThat(a.indices).as("call %d of %s", call, b).isEqualTo(b.indices);
            assertThat(a.weights).hasSameSizeAs(a.indices);
            for (int i = 0; i < a.weights.length; i++) {
              worst = Math.max(worst, Math.abs(a.weights[i] - b.weights[i]));
            }
            calls++;
          }
        }
        assertThat(worst).isLessThan(1e-4);
        System.err.printf("routing: %d calls, weights differ by %.1e%n", calls, worst);
      }
    }
  }

  /** Requests whose routing goes into a list each. */
  private static List<Request> heard(
      List<int[]> prompts, GenerationConfig config, List<List<Heard>> into) {
    var requests = new ArrayList<Request>();
    for (var prompt : prompts) {
      var its = new ArrayList<Heard>();
      into.add(its);
      requests.add(
          new Request(prompt, config, requests.size())
              .listenedBy(
                  (layer, module, rows, tokens, topK, indices, weights) ->
                      its.add(new Heard(layer, module, topK, indices, weights))));
    }
    return requests;
  }

  /** The fused kernels in a layer against the masked form, for few and for many tokens. */
  @ParameterizedTest
  @EnumSource(
      value = Dtype.class,
      names = {"F32", "F16", "BF16"})
  void theFusedLayerAgrees(Dtype dtype) {
    try (var manager = Devices.newManager(ai.djl.Device.gpu());
        var recording = Ops.notRecording()) {
      var context = ForwardContext.inference(new RoutingSettings(2, 3), Flags.AUTO);
      for (var shape : List.of(new long[] {264, 136}, new long[] {1000, 512})) {
        var bank = RandomLlama.bank(shape, manager, dtype, 28, 8).withTransposedB();
        var weight = RandomLlama.normal(manager, dtype, 1 / Math.sqrt(shape[1]), shape);
        var layer =
            new GatedLinear(weight, null, bank, 0, Backends.of(manager, dtype), 0, Projection.Q);
        for (int tokens : new int[] {1, 2, 5, 16, 17, 300}) {
          for (int topK : new int[] {1, 2, 4}) {
            context = context.withRouting(new RoutingSettings(topK, 3));
            var x = RandomLlama.normal(manager, dtype, 1, tokens, shape[1]);
            context = context.withMode(ForwardMode.MASKED);
            var masked = layer.forward(x, context.withGateLogits(true));
            var expected = floats(masked.y());
            var expectedLogits = floats(masked.gateLogits());
            for (var mode : List.of(ForwardMode.FUSED, ForwardMode.AUTO)) {
              for (boolean logits : new boolean[] {true, false}) {
                context = context.withMode(mode);
                var output = layer.forward(x, context.withGateLogits(logits));
                assertThat(relativeError(floats(output.y()), expected))
                    .as("%s, %d tokens, k %d", mode, tokens, topK)
                    .isLessThan(tolerance(dtype, tokens));
                assertThat(output.gateLogits() != null).isEqualTo(logits);
                if (logits) {
                  assertThat(relativeError(floats(output.gateLogits()), expectedLogits))
                      .isLessThan(dtype == Dtype.F32 ? 1e-5 : 1e-2);
                }
              }
            }
          }
        }
      }
    }
  }

  /**
   * Of many adapters those alone are multiplied that each token chose, from four tokens each on.
   */
  @ParameterizedTest
  @EnumSource(
      value = Dtype.class,
      names = {"F32", "F16", "BF16"})
  void manyAdaptersAgree(Dtype dtype) {
    try (var manager = Devices.newManager(ai.djl.Device.gpu());
        var recording = Ops.notRecording()) {
      var bank = RandomLlama.bank(new long[] {264, 128}, manager, dtype, 100, 8).withTransposedB();
      var weight = RandomLlama.normal(manager, dtype, 1 / Math.sqrt(128), 264, 128);
      var bias = RandomLlama.normal(manager, dtype, 1, 264);
      var backend = Backends.of(manager, dtype);
      var layer = new GatedLinear(weight, bias, bank, 0, backend, 0, Projection.Q);
      for (int tokens : new int[] {399, 401}) {
        var context = ForwardContext.inference(new RoutingSettings(2, 3), Flags.AUTO);
        var x = RandomLlama.normal(manager, dtype, 1, tokens, 128);
        var masked = layer.forward(x, context.withMode(ForwardMode.MASKED).withGateLogits(true));
        for (boolean logits : new boolean[] {true, false}) {
          var output = layer.forward(x, context.withGateLogits(logits));
          assertThat(relativeError(floats(output.y()), floats(masked.y())))
              .as("%d tokens", tokens)
              .isLessThan(tolerance(dtype, tokens));
          if (logits) {
            assertThat(relativeError(floats(output.gateLogits()), floats(masked.gateLogits())))
                .isLessThan(dtype == Dtype.F32 ? 1e-5 : 1e-2);
          }
        }
      }
    }
  }

  /** The kernels' layer behind a training pass: what it keeps of B is made anew. */
  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void theFusedLayerSeesWhatTrainingChanged(boolean transposed) {
    try (var manager = Devices.newManager(ai.djl.Device.gpu());
        var recording = Ops.notRecording()) {
      var plain = RandomLlama.bank(new long[] {24, 16}, manager, Dtype.F32, 3, 2);
      var bank = transposed ? plain.withTransposedB() : plain;
      var weight = RandomLlama.normal(manager, Dtype.F32, 0.25, 24, 16);
      var layer =
          new GatedLinear(weight, null, bank, 0, Backends.of(manager, Dtype.F32), 0, Projection.Q);
      var context = ForwardContext.inference(new RoutingSettings(2, 3), Flags.AUTO);
      for (int tokens : new int[] {3, 20}) {
        var x = RandomLlama.normal(manager, Dtype.F32, 1, tokens, 16);
        for (int i = 0; i < 2; i++) {
          var expected = floats(layer.forward(x, context.withMode(ForwardMode.MASKED)).y());
          assertThat(relativeError(floats(layer.forward(x, context).y()), expected))
              .as("%d tokens, trained %d times", tokens, i)
              .isLessThan(1e-4);
          layer.forward(x, context.forTraining(true));
          bank.loraB().addi(1);
        }
      }
    }
  }

  /**
   * In half precision two adapters may come so near each other that rounding decides: a token then
   * has another adapter, and is wrong by that adapter's whole part.
   */
  private static double tolerance(Dtype dtype, int tokens) {
    return dtype == Dtype.F32 ? 1e-4 : tokens < 17 ? 0.7 : dtype == Dtype.F16 ? 0.06 : 0.15;
  }

  private static float[] floats(ai.djl.ndarray.NDArray array) {
    return Ops.cast(array, Dtype.F32).toFloatArray();
  }
}
