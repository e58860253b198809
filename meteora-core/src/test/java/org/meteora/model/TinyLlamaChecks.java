package org.meteora.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import ai.djl.ndarray.NDArray;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.meteora.Fixtures;
import org.meteora.UserException;
import org.meteora.checkpoint.LoadedModel;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardMode;
import org.meteora.router.Routers;
import org.meteora.safetensors.SafetensorsFile;
import org.meteora.safetensors.SafetensorsWriter;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * Against transformers and peft in float32: every logit, gate logit and continuation of the tiny
 * model.
 */
abstract class TinyLlamaChecks {
  static final List<String> MODELS =
      List.of(
          "base",
          "peft.task_a",
          "peft.task_b",
          "peft.task_c",
          "peft.task_d",
          "meteora.k1.T1",
          "meteora.k2.T1",
          "meteora.k2.T15",
          "meteora.k3.T20");

  /** {@code cpu} or {@code cuda}. */
  abstract String device();

  LoadedModel load(String name, Path base, Optional<String> dtype) {
    var tiny = Fixtures.tinyLlama();
    var parts = name.split("\\.");
    boolean meteora = parts[0].equals("meteora");
    return LoadedModel.load(
        new LoadedModel.Spec(
            base,
            parts[0].equals("peft") ? parts[1] : parts[0],
            meteora ? Optional.of(tiny.resolve("meteora")) : Optional.empty(),
            Optional.of(tiny.resolve("adapters")),
            meteora ? Optional.of(Integer.parseInt(parts[1].substring(1))) : Optional.empty(),
            meteora ? Optional.of(Double.parseDouble(parts[2].substring(1))) : Optional.empty(),
            device(),
            dtype.or(() -> Optional.of("f32")),
            Flags.AUTO,
            Routers.GATE));
  }

  static float[] expectedLogits(String name) {
    try (var file = SafetensorsFile.open(Fixtures.tinyLlama().resolve("expected.safetensors"));
        var manager = Devices.newManager(ai.djl.Device.cpu())) {
      return file.read(manager, name).toFloatArray();
    }
  }

  /**
   * Runs prompts as one left-padded batch in pieces of at most {@code piece} tokens; the last
   * position's logits.
   */
  static float[] logits(LoadedModel model, List<int[]> prompts, int piece) {
    return logits(model.llama(), model.generator().context(), prompts, piece);
  }

  private static float[] logits(
      Llama llama, ForwardContext context, List<int[]> prompts, int piece) {
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
        try (var step = manager.newSubManager()) {
          NDArray input = step.create(ids, Ops.shape(prompts.size(), width));
          result = llama.next(input, cache, context).toFloatArray();
        }
      }
      return result;
    }
  }

  static void assertClose(float[] actual, float[] expected, double tolerance) {
    assertThat(actual).hasSameSizeAs(expected);
    double worst = 0;
    for (int i = 0; i < actual.length; i++) {
      worst = Math.max(worst, Math.abs(actual[i] - expected[i]));
    }
    assertThat(worst).isLessThan(tolerance);
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "base",
        "peft.task_a",
        "peft.task_b",
        "peft.task_c",
        "peft.task_d",
        "meteora.k1.T1",
        "meteora.k2.T1",
        "meteora.k2.T15",
        "meteora.k3.T20"
      })
  void logitsAndContinuationsAgree(String name) {
    var prompts = Fixtures.prompts();
    var expected = expectedLogits(name + ".logits_last");
    var generated = Fixtures.expected().get(name + ".generated");
    try (var model = load(name, Fixtures.tinyLlama().resolve("base"), Optional.empty())) {
      assertClose(logits(model, prompts, 1000), expected, 1e-4);
      assertClose(logits(model, prompts, 1), expected, 1e-4);
      assertClose(logits(model, prompts, 50), expected, 1e-4);
      var config =
          model.generationConfig().withGreedy().withNoRepeatNgramSize(3).withMaxNewTokens(24);
      var together = model.generator().generate(prompts, config);
      for (int row = 0; row < prompts.size(); row++) {
        var alone = List.of(prompts.get(row));
        assertClose(
            logits(model, alone, 1000),
            Arrays.copyOfRange(expected, row * 512, row * 512 + 512),
            1e-4);
        var tokens = untilEos(Fixtures.ints(generated.get(row)));
        assertThat(together.get(row)).isEqualTo(tokens);
        assertThat(model.generator().generate(alone, config).getFirst()).isEqualTo(tokens);
      }
    }
  }

  private static int[] untilEos(int[] tokens) {
    int end = 0;
    while (end < tokens.length && tokens[end] != 1) {
      end++;
    }
    return Arrays.copyOf(tokens, end);
  }

  @ParameterizedTest
  @EnumSource(value = ForwardMode.class, names = "REFERENCE", mode = EnumSource.Mode.EXCLUDE)
  void everyForwardModeAgrees(ForwardMode mode) {
    for (var name : MODELS.subList(5, 9)) {
      try (var model = load(name, Fixtures.tinyLlama().resolve("base"), Optional.empty())) {
        var context = model.generator().context().withMode(mode);
        assertClose(
            logits(model.llama(), context, Fixtures.prompts(), 1000),
            expectedLogits(name + ".logits_last"),
            1e-4);
      }
    }
  }

  @Test
  void gateLogitsAgree() {
    var prompts = Fixtures.prompts();
    int seq = prompts.stream().mapToInt(p -> p.length).max().orElseThrow();
    try (var model = load("meteora.k2.T1", Fixtures.tinyLlama().resolve("base"), Optional.empty());
        var manager = model.llama().manager().newSubManager()) {
      for (var entry : Map.of("0.self_attn.q_proj", 0, "1.mlp.down_proj", 13).entrySet()) {
        var expected = expectedLogits("gate_logits.model.layers." + entry.getKey());
        for (int row = 0; row < prompts.size(); row++) {
          int length = prompts.get(row).length;
          var ids =
              manager.create(
                  Arrays.stream(prompts.get(row)).asLongStream().toArray(), Ops.shape(1, length));
          // evaluation's routing while gate logits are collected
          var context = model.generator().context().withGateLogits(true);
          var pass = Pass.whole(manager, model.llama(), new int[] {length}, context);
          var gates = new ArrayList<float[]>();
          model.llama().logits(ids, pass);
          pass.gateLogits().forEach(each -> gates.add(each.toFloatArray()));
          assertThat(gates).hasSize(14);
          assertClose(
              gates.get(entry.getValue()),
              Arrays.copyOfRange(expected, (row * seq + seq - length) * 4, (row + 1) * seq * 4),
              1e-4);
        }
      }
    }
  }

  /**
   * Files in half precision: in float32 the rounded weights give the same bits as a float32 file of
   * them would.
   */
  @ParameterizedTest
  @EnumSource(
      value = Dtype.class,
      names = {"BF16", "F16"})
  void halfPrecisionFilesLoad(Dtype dtype, @TempDir Path folder) throws Exception {
    var half = rounded(folder.resolve("half"), dtype, dtype);
    var full = rounded(folder.resolve("full"), dtype, Dtype.F32);
    for (var name : List.of("base", "peft.task_a", "meteora.k2.T1")) {
      try (var fromHalf = load(name, half, Optional.empty());
          var fromFull = load(name, full, Optional.empty())) {
        assertThat(logits(fromHalf, Fixtures.prompts(), 1000))
            .isEqualTo(logits(fromFull, Fixtures.prompts(), 1000));
      }
    }
    // computing in half precision: activations are rounded at every step; without gates no choice
    // can flip
    for (var name : List.of("base", "peft.task_a")) {
      try (var model = load(name, half, Optional.of(dtype.label()));
          var reference = load(name, half, Optional.empty())) {
        assertThat(model.llama().dtype()).isEqualTo(dtype);
        assertThat(
                relativeError(
                    logits(model, Fixtures.prompts(), 1000),
                    logits(reference, Fixtures.prompts(), 1000)))
            .isLessThan(dtype == Dtype.F16 ? 5e-3 : 3e-2);
      }
    }
  }

  static double relativeError(float[] actual, float[] expected) {
    double difference = 0;
    double norm = 0;
    for (int i = 0; i < actual.length; i++) {
      difference += Math.pow(actual[i] - expected[i], 2);
      norm += Math.pow(expected[i], 2);
    }
    return Math.sqrt(difference / norm);
  }

  /** The base model's folder with weights rounded to one dtype and stored in another. */
  private static Path rounded(Path folder, Dtype rounding, Dtype stored) throws Exception {
    Files.createDirectories(folder);
    var base = Fixtures.tinyLlama().resolve("base");
    for (var name : List.of("config.json", "generation_config.json", "tokenizer.json")) {
      Files.copy(base.resolve(name), folder.resolve(name));
    }
    try (var file = SafetensorsFile.open(base.resolve("model.safetensors"));
        var manager = Devices.newManager(ai.djl.Device.cpu())) {
      var tensors = new HashMap<String, NDArray>();
      for (var name : file.tensors().keySet()) {
        tensors.put(name, Ops.cast(Ops.cast(file.read(manager, name), rounding), stored));
      }
      SafetensorsWriter.write(folder.resolve("model.safetensors"), tensors, Map.of());
    }
    return folder;
  }

  /** A token whose embedding is no number, chosen by the prefill: the step behind it finds it. */
  @Test
  void aStepWhoseLogitsAreNotFiniteEndsTheAnswer() {
    var prompts = new ArrayList<>(Fixtures.prompts());
    // in bfloat16, so that the weights are no mapped file
    try (var model =
        load("meteora.k2.T15", Fixtures.tinyLlama().resolve("base"), Optional.of("bf16"))) {
      var config = model.generationConfig().withGreedy().withMaxNewTokens(3);
      var auto = model.generator();
      var gather = auto.with(auto.context().withMode(ForwardMode.GATHER));
      var expected = auto.generate(prompts, config);
      int first =
          expected.stream()
              .mapToInt(answer -> answer[0])
              .filter(t -> t != config.padTokenId())
              .filter(t -> prompts.stream().flatMapToInt(Arrays::stream).noneMatch(o -> o == t))
              .findFirst()
              .orElseThrow();
      try (var scope = model.llama().manager().newSubManager();
          var row = Ops.narrow(model.llama().embedding(), 0, first, 1)) {
        row.attach(scope);
        var kept = row.duplicate();
        Ops.copy(row, row.mul(Float.NaN));
        for (var each : List.of(config, config.withSampling(0.01, 1, 0, 3))) {
          for (var generator : List.of(auto, gather)) {
            assertThatThrownBy(() -> generator.generate(prompts, each))
                .isInstanceOf(UserException.class)
                .hasMessageContaining("logits are not finite");
          }
        }
        assertThat(auto.generate(prompts, config.withMaxNewTokens(1)))
            .as("the prefill does not meet it")
            .contains(new int[] {first});
        Ops.copy(row, kept);
      }
      assertThat(auto.generate(prompts, config)).containsExactlyElementsOf(expected);
    }
  }
}
