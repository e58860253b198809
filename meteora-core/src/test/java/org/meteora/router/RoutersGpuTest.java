package org.meteora.router;

import static org.assertj.core.api.Assertions.assertThat;

import ai.djl.Device;
import ai.djl.ndarray.NDManager;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.meteora.Fixtures;
import org.meteora.backend.cuda.CudaDecoder;
import org.meteora.checkpoint.LoadedModel;
import org.meteora.generate.DecodeSession;
import org.meteora.generate.GenerationConfig;
import org.meteora.model.KvCache;
import org.meteora.moe.Choice;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.Router;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Ops;

/** The routers on a GPU in float32: as PEFT has it, or as the CPU. */
@Tag("gpu")
class RoutersGpuTest {
  @ParameterizedTest
  @CsvSource({"1, 1", "2, 1", "2, 4", "3, 1"})
  void arrowIsPefts(int k, double t) {
    RoutersTest.arrowAgreesWithPeft("cuda", k, t);
  }

  private static ForwardContext context(LoadedModel model, String router) {
    var context = model.generator().context();
    return context.withRouting(
        context.routing().withRouter(RoutersTest.router(router, model.llama())));
  }

  /** Prefill of many tokens and of few. */
  @ParameterizedTest
  @ValueSource(strings = {"arrow", "spectr", "phatgoose", "lora-flow", "uniform"})
  void logitsAreTheCpus(String router) {
    var prompts = Fixtures.prompts();
    try (var cpu = RoutersTest.tiny("cpu", "uniform", 2, 1.5);
        var gpu = RoutersTest.tiny("cuda", "uniform", 2, 1.5)) {
      var onCpu = router.equals("uniform") ? cpu.generator().context() : context(cpu, router);
      var onGpu = router.equals("uniform") ? gpu.generator().context() : context(gpu, router);
      var expected = RoutersTest.logits(cpu.llama(), onCpu, prompts, 1000);
      for (int piece : new int[] {1000, 1}) {
        var actual = RoutersTest.logits(gpu.llama(), onGpu, prompts, piece);
        assertThat(RoutersTest.worst(actual, expected)).isLessThan(1e-4);
      }
    }
  }

  /** Prefill of many tokens and of few, with gates that are not asked and without. */
  @ParameterizedTest
  @CsvSource({"true, 2", "false, 2", "false, 4"})
  void prefillsOfGivenChoicesAreTheCpus(boolean gated, int k) {
    var prompts = Fixtures.prompts();
    var router = byPlace(prompts.size(), k, 0);
    try (var cpu = tiny("cpu", gated, "meteora");
        var gpu = tiny("cuda", gated, "meteora")) {
      for (int piece : new int[] {1000, 1}) {
        var expected = RoutersTest.logits(cpu.llama(), with(cpu, router), prompts, piece);
        var actual = RoutersTest.logits(gpu.llama(), with(gpu, router), prompts, piece);
        assertThat(RoutersTest.worst(actual, expected)).isLessThan(1e-4);
      }
      var none = with(gpu, Router.none());
      var without = RoutersTest.logits(gpu.llama(), none, prompts, 1000);
      var some = RoutersTest.logits(gpu.llama(), with(gpu, router), prompts, 1000);
      assertThat(RoutersTest.worst(some, without)).isGreaterThan(1e-2);
    }
  }

  @Test
  void prefillsOfOneAdapterAreTheCpus() {
    var prompts = Fixtures.prompts();
    try (var cpu = tiny("cpu", false, "task_b");
        var gpu = tiny("cuda", false, "task_b")) {
      var expected = RoutersTest.logits(cpu.llama(), cpu.generator().context(), prompts, 1000);
      for (int piece : new int[] {1000, 1}) {
        var context = gpu.generator().context();
        var actual = RoutersTest.logits(gpu.llama(), context, prompts, piece);
        assertThat(RoutersTest.worst(actual, expected)).isLessThan(1e-4);
      }
    }
  }

  private static LoadedModel tiny(String device, boolean gated, String model) {
    var tiny = Fixtures.tinyLlama();
    return LoadedModel.load(
        new LoadedModel.Spec(
            tiny.resolve("base"),
            model,
            gated ? Optional.of(tiny.resolve("meteora")) : Optional.empty(),
            Optional.of(tiny.resolve("adapters")),
            Optional.of(2),
            Optional.of(1.5),
            device,
            Optional.of("f32"),
            Flags.AUTO,
            gated || !model.equals("meteora") ? "gate" : "uniform"));
  }

  /**
   * Decode steps of few rows and of many; a graph is captured at the fourth. "given": every row has
   * a router of its own, with other adapters at every place.
   */
  @ParameterizedTest
  @CsvSource({
    "arrow, 2, 2",
    "arrow, 2, 20",
    "spectr, 2, 2",
    "spectr, 2, 20",
    "phatgoose, 2, 2",
    "phatgoose, 2, 20",
    "given, 2, 2",
    "given, 2, 20",
    "given, 4, 2",
    "given, 4, 20",
    "lora-flow, 2, 2",
    "lora-flow, 2, 20"
  })
  void decodeStepsAreTheCpus(String router, int k, int rows) {
    try (var cpu = RoutersTest.tiny("cpu", "uniform", k, 1.5);
        var gpu = RoutersTest.tiny("cuda", "uniform", k, 1.5);
        var onHost = Devices.newManager(Device.cpu());
        var onDevice = gpu.llama().manager().newSubManager()) {
      boolean given = router.equals("given");
      var expected = given ? with(cpu, byPlace(rows, k, 0)) : context(cpu, router);
      var actual = given ? with(gpu, byPlace(rows, k, 0)) : context(gpu, router);
      assertThat(CudaDecoder.refusal(gpu.llama(), rows, actual)).isEmpty();
      var prompt = IntStream.range(0, rows * 7).mapToLong(i -> 5 + i * 37 % 80).toArray();
      try (var cpuCache = cpu.llama().newCache(onHost, new int[rows], 12);
          var gpuCache = gpu.llama().newCache(onDevice, new int[rows], 12);
          var decoder = new CudaDecoder(gpu.llama(), actual.routing(), false)) {
        next(cpu, onHost, cpuCache, prompt, 7, expected);
        next(gpu, onDevice, gpuCache, prompt, 7, actual);
        var greedy = GenerationConfig.greedy(List.of(), 100);
        decoder.begin(rows, 12, actual);
        var columns =
            IntStream.range(0, rows)
                .mapToObj(row -> new KvCache.Columns(row, 0, rows - 1 - row, 0, 7))
                .toList();
        decoder.join(gpuCache, columns);
        for (int step = 0; step < 5; step++) {
          int add = step;
          var tokens = IntStream.range(0, rows).map(row -> 9 + (row * 11 + add) % 70).toArray();
          var its = byPlace(rows, k, 7 + step);
          var wanted =
              next(
                  cpu,
                  onHost,
                  cpuCache,
                  Arrays.stream(tokens).asLongStream().toArray(),
                  1,
                  given ? with(cpu, its) : expected);
          decoder.step(
              IntStream.range(0, rows)
                  .mapToObj(
                      r ->
                          new DecodeSession.Next(
                              new int[] {rows - 1 - r},
                              7 + add,
                              tokens[r],
                              new int[0],
                              0,
                              0,
                              greedy,
                              given ? Optional.of(its.rows().get(r)) : Optional.empty()))
                  .toList(),
              false);
          var row = new float[wanted.length / rows];
          for (int r = 0; r < rows; r++) {
            decoder.logits(r, row);
            var own = Arrays.copyOfRange(wanted, r * row.length, (r + 1) * row.length);
            assertThat(RoutersTest.worst(row, own)).isLessThan(1e-4);
          }
        }
      }
    }
  }

  private static ForwardContext with(LoadedModel model, Router router) {
    var context = model.generator().context();
    return context.withRouting(context.routing().withRouter(router));
  }

  /** A row has up to {@code k} adapters, which change from place to place; every third has one. */
  private static Router.Rows byPlace(int rows, int k, int place) {
    return new Router.Rows(
        IntStream.range(0, rows)
            .mapToObj(
                row ->
                    new Router.Rows.Row(
                        (first, tokens) -> {
                          int width = row % 3 == 0 ? 1 : k;
                          var choice = new Choice(tokens, width);
                          for (int i = 0; i < tokens * width; i++) {
                            choice.indices()[i] = (row + first + i / width + i % width) % 4;
                            choice.weights()[i] = 0.3f + 0.1f * (i % width) + 0.01f * row;
                          }
                          return choice;
                        },
                        place))
            .toList());
  }

  private static float[] next(
      LoadedModel model,
      NDManager manager,
      KvCache cache,
      long[] ids,
      int width,
      ForwardContext context) {
    try (var scope = manager.newSubManager();
        var off = Ops.notRecording()) {
      var input = scope.create(ids, Ops.shape(ids.length / width, width));
      return model.llama().next(input, cache, context).toFloatArray();
    }
  }

  private static List<int[]> answers(LoadedModel model) {
    var config =
        model.generationConfig().withGreedy().withNoRepeatNgramSize(3).withMaxNewTokens(24);
    return model.generator().generate(Fixtures.prompts(), config);
  }

  @ParameterizedTest
  @ValueSource(strings = {"logo", "logo-entropy", "uniform"})
  void whatIsChosenForAWholeAnswerContinuesAsOnTheCpu(String router) {
    try (var cpu = RoutersTest.tiny("cpu", router, 2, 1);
        var gpu = RoutersTest.tiny("cuda", router, 2, 1)) {
      assertThat(gpu.llama().manager().getDevice()).isNotEqualTo(Device.cpu());
      var expected = answers(cpu);
      var actual = answers(gpu);
      for (int row = 0; row < expected.size(); row++) {
        assertThat(actual.get(row)).isEqualTo(expected.get(row));
      }
    }
  }
}
