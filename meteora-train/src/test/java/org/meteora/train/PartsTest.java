package org.meteora.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.BooleanSupplier;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.io.Jsonl;
import org.meteora.moe.Flags;
import org.meteora.parallel.Collective;
import org.meteora.safetensors.SafetensorsFile;
import org.meteora.tensor.Devices;
import org.meteora.train.optim.CosineSchedule;

/** The default training: the gates, and a part of everything where they are not enough. */
class PartsTest {
  private static final List<String> TASKS = List.of("crow", "zebra");

  /** Steps of the gates' part, and of the whole run. */
  private static final int FIRST = 6;

  private static final int ALL = 12;

  @TempDir Path folder;

  /** Two tasks that differ in one word, and adapters that know them. */
  @BeforeEach
  void adapters() throws Exception {
    Fixtures.require();
    for (var name : TASKS) {
      var lines = new ArrayList<String>();
      for (int i = 0; i < 24; i++) {
        lines.add(
            Jsonl.JSON.writeValueAsString(
                Map.of("prompt", name + " " + i + "\n", "response", name + name)));
      }
      Files.createDirectories(folder.resolve("datasets").resolve(name));
      Files.write(data(name), lines);
      new LoraTraining(
              TrainConfig.lora(
                  Map.of(),
                  Map.of("max_steps", 40, "learning_rate", 1e-2, "dropout", 0, "device", "cpu")),
              Fixtures.TINY.resolve("base"),
              name,
              Map.of(name, data(name)),
              0,
              folder.resolve("adapters").resolve(name),
              false,
              Flags.AUTO)
          .run(Collective.single(), Collective.single(), () -> false)
          .orElseThrow();
    }
  }

  private Path data(String name) {
    return folder.resolve("datasets").resolve(name).resolve("train.jsonl");
  }

  /** Gates whose rate is so low that they go on guessing. */
  private Optional<Path> train(
      String run, Map<String, Object> more, boolean resume, BooleanSupplier stop) {
    var options = new LinkedHashMap<String, Object>();
    options.putAll(Map.of("max_steps", FIRST, "eval_steps", 2, "save_steps", FIRST));
    options.putAll(Map.of("learning_rate", 1e-6, "batch_size", 4, "device", "cpu"));
    options.putAll(more);
    return new MeteoraTraining(
            TrainConfig.meteora(Map.of(), options),
            Fixtures.TINY.resolve("base"),
            folder.resolve("adapters"),
            folder.resolve("datasets"),
            folder.resolve(run),
            false,
            resume,
            Flags.AUTO)
        .run(Collective.single(), Collective.single(), stop);
  }

  private List<JsonNode> metrics(String run, String event) {
    var result = new ArrayList<JsonNode>();
    Jsonl.forEach(
        folder.resolve(run).resolve("metrics.jsonl"),
        (node, line) -> {
          if (node.get("event").asText().equals(event)) {
            result.add(node);
          }
        });
    return result;
  }

  /** Steps made. */
  private int made(String run) {
    return Files.exists(folder.resolve(run).resolve("metrics.jsonl"))
        ? metrics(run, "step").size()
        : 0;
  }

  private static List<Double> values(List<JsonNode> nodes, String key) {
    return nodes.stream().map(node -> node.get(key).asDouble()).toList();
  }

  private static Map<String, float[]> tensors(Path model) {
    var result = new LinkedHashMap<String, float[]>();
    try (var file = SafetensorsFile.open(model);
        var manager = Devices.newManager(ai.djl.Device.cpu())) {
      file.tensors()
          .keySet()
          .forEach(name -> result.put(name, file.read(manager, name).toFloatArray()));
    }
    return result;
  }

  private Map<String, float[]> result(String run) {
    return tensors(folder.resolve(run).resolve("meteora/model.safetensors"));
  }

  private static void same(Map<String, float[]> actual, Map<String, float[]> expected) {
    assertThat(actual.keySet()).isEqualTo(expected.keySet());
    expected.forEach((name, values) -> assertThat(actual.get(name)).as(name).isEqualTo(values));
  }

  private JsonNode how(String run) {
    return Jsonl.readFile(folder.resolve(run).resolve("meteora/training.json"));
  }

  /** A second schedule, over everything, without the gates' loss; said where a run says things. */
  @Test
  void whatGatesLeaveIsMendedByASecondPart() throws Exception {
    train("run", Map.of("report_to", "tensorboard"), false, () -> false).orElseThrow();
    var part = metrics("run", "part");
    assertThat(part).hasSize(1);
    assertThat(part.getFirst().get("step").asInt()).isEqualTo(FIRST);
    assertThat(part.getFirst().get("steps").asInt()).isEqualTo(ALL - FIRST);
    assertThat(part.getFirst().get("gate_loss_weight").asDouble()).isZero();
    var steps = metrics("run", "step");
    assertThat(values(steps, "step")).hasSize(ALL).last().isEqualTo((double) ALL);
    var first = CosineSchedule.of(1e-6, 0.05, FIRST);
    var second = CosineSchedule.of(1e-7, 0.05, ALL - FIRST);
    for (int i = 0; i < ALL; i++) {
      double rate = i < FIRST ? first.rate(i) : second.rate(i - FIRST);
      var losses = steps.get(i);
      double weight = i < FIRST ? 10 : 0;
      assertThat(losses.get("learning_rate").asDouble()).isCloseTo(rate, within(1e-15));
      assertThat(losses.get("loss").asDouble())
          .isCloseTo(
              losses.get("lm_loss").asDouble() + weight * losses.get("gate_loss").asDouble(),
              within(1e-6));
    }
    // the gates' result evaluated once more, then the second part's
    var evaluations = metrics("run", "eval");
    assertThat(values(evaluations, "step")).containsExactly(0d, 2d, 4d, 6d, 6d, 8d, 10d, 12d);
    var answers = values(evaluations, "answer_loss");
    double oracle = evaluations.getFirst().get("oracle_answer_loss").asDouble();
    assertThat(answers.get(4)).isGreaterThan(1.1 * oracle);
    assertThat(answers.getLast()).isLessThan(answers.get(4));
    assertThat(values(evaluations, "oracle_answer_loss")).allMatch(it -> it == oracle);
    assertThat(how("run").get("steps").asInt()).isEqualTo(ALL);
    assertThat(how("run").get("train").asText()).isEqualTo("auto");
    assertThat(folder.resolve("run/loss.png")).isNotEmptyFile();
    try (var files = Files.newDirectoryStream(folder.resolve("run"), "events.*")) {
      assertThat(files).isNotEmpty();
    }
  }

  /** Its second part steps other tensors by other gradients than the first. */
  @Test
  @Tag("gpu")
  void aSecondPartOnAGpu() {
    train("cpu", Map.of("dropout", 0), false, () -> false).orElseThrow();
    var gpu = Map.<String, Object>of("dropout", 0, "device", "cuda", "dtype", "f32");
    train("gpu", gpu, false, () -> false).orElseThrow();
    var expected = values(metrics("cpu", "step"), "lm_loss");
    var actual = values(metrics("gpu", "step"), "lm_loss");
    assertThat(actual).hasSize(ALL);
    for (int i = 0; i < ALL; i++) {
      assertThat(actual.get(i)).isCloseTo(expected.get(i), within(1e-3 * expected.get(i)));
    }
    train("bf16", Map.of("device", "cuda"), false, () -> false).orElseThrow();
    var answers = values(metrics("bf16", "eval"), "answer_loss");
    assertThat(answers.getLast()).isLessThan(answers.get(4));
  }

  /** Stopped in either part, or killed in the second before its first checkpoint. */
  @Test
  void goingOnIsAsNeverStopping() {
    train("whole", Map.of(), false, () -> false);
    var metrics = values(metrics("whole", "eval"), "answer_loss");
    for (int at : new int[] {3, FIRST + 1}) {
      var run = "stopped" + at;
      assertThat(train(run, Map.of(), false, () -> made(run) >= at)).isEmpty();
      assertThat(metrics(run, "step")).hasSize(at);
      train(run, Map.of(), true, () -> false).orElseThrow();
      same(result(run), result("whole"));
      assertThat(values(metrics(run, "eval"), "answer_loss")).isEqualTo(metrics);
      assertThat(how(run)).isEqualTo(how("whole"));
    }
    BooleanSupplier kill =
        () -> {
          if (made("killed") >= FIRST + 2) {
            throw new IllegalStateException("killed");
          }
          return false;
        };
    assertThatThrownBy(() -> train("killed", Map.of(), false, kill)).hasMessage("killed");
    // the gates' result is there by then
    assertThat(how("killed").get("steps").asInt()).isEqualTo(FIRST);
    train("killed", Map.of(), true, () -> false).orElseThrow();
    same(result("killed"), result("whole"));
    assertThat(values(metrics("killed", "eval"), "answer_loss")).isEqualTo(metrics);
    assertThat(metrics("killed", "part")).hasSize(1);
    // a run that has ended comes to the same again
    train("whole", Map.of(), true, () -> false).orElseThrow();
    same(result("whole"), result("killed"));
  }

  /** A rate that ruins the adapters: what the gates had come to is the result. */
  @Test
  void theSecondPartMakesNothingWorse() {
    Map<String, Object> ruin = Map.of("adapter_learning_rate", 3);
    train("ruined", ruin, false, () -> false).orElseThrow();
    var answers = values(metrics("ruined", "eval"), "answer_loss");
    assertThat(answers.getLast()).isGreaterThan(answers.get(4));
    long kept = how("ruined").get("kept_step").asLong();
    assertThat(kept).isBetween(1L, (long) FIRST);
    assertThat(how("ruined").get("steps").asInt()).isEqualTo(ALL);
    train("gates", Map.of("train", "gates"), false, () -> false).orElseThrow();
    assertThat(how("gates").get("kept_step").asLong()).isEqualTo(kept);
    same(result("ruined"), result("gates"));
  }

  /** No room for the adapters' gradients: the gates are the result, and a later start may go on. */
  @Test
  void tooLittleMemoryForTheSecondPart() {
    BooleanSupplier full =
        () -> {
          if (made("run") > FIRST) {
            throw new IllegalStateException("libtorch failed in aten::empty: CUDA out of memory.");
          }
          return false;
        };
    assertThat(train("run", Map.of(), false, full)).isPresent();
    assertThat(how("run").get("steps").asInt()).isEqualTo(FIRST);
    train("gates", Map.of("train", "gates"), false, () -> false).orElseThrow();
    same(result("run"), result("gates"));
    train("run", Map.of(), true, () -> false).orElseThrow();
    assertThat(how("run").get("steps").asInt()).isEqualTo(ALL);
  }

  /** With one adapter under two names no choice is wrong. */
  @Test
  void gatesThatAreGoodEnoughAreTheEnd() throws Exception {
    for (var name : List.of("adapter_model.safetensors", "training.json")) {
      Files.write(
          folder.resolve("adapters/zebra").resolve(name),
          Files.readAllBytes(folder.resolve("adapters/crow").resolve(name)));
    }
    train("run", Map.of(), false, () -> false).orElseThrow();
    assertThat(metrics("run", "step")).hasSize(FIRST);
    assertThat(metrics("run", "part")).isEmpty();
    assertThat(how("run").get("steps").asInt()).isEqualTo(FIRST);
    // nor is there a second part where nothing tells that it is wanted
    train("unknown", Map.of("eval_ratio", 0), false, () -> false).orElseThrow();
    assertThat(metrics("unknown", "step")).hasSize(FIRST);
  }
}
