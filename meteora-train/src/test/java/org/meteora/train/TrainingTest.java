package org.meteora.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import ai.djl.Device;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.UserException;
import org.meteora.checkpoint.LoadedModel;
import org.meteora.generate.Tokenizer;
import org.meteora.io.Jsonl;
import org.meteora.lora.LoraAdapter;
import org.meteora.moe.Flags;
import org.meteora.parallel.Collective;
import org.meteora.router.Routers;
import org.meteora.safetensors.SafetensorsFile;
import org.meteora.tensor.Devices;
import org.meteora.train.batch.TaskSamples;
import org.meteora.train.batch.TrainingSample;

/** From task files to adapters, and from adapters to a MeteoRA checkpoint that loads. */
class TrainingTest {
  @TempDir Path folder;

  @BeforeEach
  void needsFixtures() {
    Fixtures.require();
  }

  private void task(String name, String word) throws Exception {
    var lines = new ArrayList<String>();
    for (int i = 0; i < 24; i++) {
      lines.add(
          Jsonl.JSON.writeValueAsString(
              Map.of(
                  "prompt", "[INST] " + word + " " + i + " [/INST]\n", "response", word + word)));
    }
    Files.createDirectories(folder.resolve("datasets").resolve(name));
    Files.write(folder.resolve("datasets").resolve(name).resolve("train.jsonl"), lines);
  }

  private Path data(String name) {
    return folder.resolve("datasets").resolve(name).resolve("train.jsonl");
  }

  private Path lora(String name, Map<String, Object> more) {
    return lora(Fixtures.TINY.resolve("base"), name, more, false);
  }

  private Path lora(Path base, String name, Map<String, Object> more, boolean resume) {
    var options = new LinkedHashMap<String, Object>(Map.of("max_steps", 4, "device", "cpu"));
    options.putAll(more);
    return new LoraTraining(
            TrainConfig.lora(Map.of(), options),
            base,
            name,
            Map.of(name, data(name)),
            0,
            folder.resolve("adapters").resolve(name),
            resume,
            Flags.AUTO)
        .run(Collective.single(), Collective.single(), () -> false)
        .orElseThrow();
  }

  private MeteoraTraining meteora(Map<String, Object> options, boolean withBase, boolean resume) {
    return new MeteoraTraining(
        TrainConfig.meteora(Map.of(), options),
        Fixtures.TINY.resolve("base"),
        folder.resolve("adapters"),
        folder.resolve("datasets"),
        folder.resolve("run"),
        withBase,
        resume,
        Flags.AUTO);
  }

  /**
   * Adapters that are trained together are those that are trained alone, within rounding (1e-4 of
   * weights near 0.1 after steps of 5e-4), each to its own end; and a run alone goes on from the
   * checkpoint of one together.
   */
  @Test
  void adaptersTrainedTogetherAreThoseTrainedAlone() throws Exception {
    task("zebra", "stripes");
    task("alpaca", "wool");
    task("crow", "black");
    var lines = Files.readAllLines(data("crow"));
    Files.write(data("crow"), lines.subList(0, 10)); // fewer: its epochs end earlier
    Map<String, Object> settings = Map.of("epochs", 1, "dropout", 0, "batch_size", 3, "r", 2);
    var names = List.of("zebra", "alpaca", "crow");
    var options = new LinkedHashMap<String, Object>(settings);
    options.put("device", "cpu");
    var trainings =
        names.stream()
            .map(
                name ->
                    new LoraTraining(
                        TrainConfig.lora(Map.of(), options),
                        Fixtures.TINY.resolve("base"),
                        name,
                        Map.of(name, data(name)),
                        0,
                        folder.resolve("together").resolve(name),
                        false,
                        Flags.AUTO))
            .toList();
    var written = LoraTraining.together(trainings, () -> false);
    assertThat(written).extracting(path -> path.getFileName().toString()).isEqualTo(names);
    for (var name : names) {
      var alone =
          new LoraTraining(
                  TrainConfig.lora(Map.of(), options),
                  Fixtures.TINY.resolve("base"),
                  name,
                  Map.of(name, data(name)),
                  0,
                  folder.resolve("alone").resolve(name),
                  false,
                  Flags.AUTO)
              .run(Collective.single(), Collective.single(), () -> false)
              .orElseThrow();
      var same = folder.resolve("together").resolve(name);
      assertThat(Jsonl.readFile(same.resolve("training.json")).get("steps"))
          .isEqualTo(Jsonl.readFile(alone.resolve("training.json")).get("steps"));
      try (var expected =
              org.meteora.safetensors.SafetensorsFile.open(
                  alone.resolve("adapter_model.safetensors"));
          var actual =
              org.meteora.safetensors.SafetensorsFile.open(
                  same.resolve("adapter_model.safetensors"));
          var manager = org.meteora.tensor.Devices.newManager(ai.djl.Device.cpu())) {
        assertThat(actual.tensors().keySet()).isEqualTo(expected.tensors().keySet());
        for (var key : expected.tensors().keySet()) {
          assertThat(actual.read(manager, key).toFloatArray())
              .as("%s of %s", key, name)
              .containsExactly(
                  expected.read(manager, key).toFloatArray(),
                  org.assertj.core.api.Assertions.within(1e-4f));
        }
      }
    }
    options.put("epochs", 2);
    var longer =
        new LoraTraining(
                TrainConfig.lora(Map.of(), options),
                Fixtures.TINY.resolve("base"),
                "crow",
                Map.of("crow", data("crow")),
                0,
                folder.resolve("together").resolve("crow"),
                true,
                Flags.AUTO)
            .run(Collective.single(), Collective.single(), () -> false)
            .orElseThrow();
    // 9 samples in batches of 3, two batches a step: 2 steps an epoch, 3 in two
    assertThat(Jsonl.readFile(longer.resolve("training.json")).get("steps").asInt()).isEqualTo(3);
  }

  /** Halves, until they fit: three that do not, then two, then the one that is left. */
  @Test
  void asManyAdaptersAreTrainedTogetherAsMemoryAllows() throws Exception {
    var names = List.of("zebra", "alpaca", "crow");
    var trainings = new java.util.ArrayList<LoraTraining>();
    for (var name : names) {
      task(name, "an answer");
      trainings.add(
          new LoraTraining(
              TrainConfig.lora(Map.of(), Map.of("max_steps", 1, "device", "cpu")),
              Fixtures.TINY.resolve("base"),
              name,
              Map.of(name, data(name)),
              0,
              folder.resolve("adapters").resolve(name),
              false,
              Flags.AUTO));
    }
    var tried = new java.util.ArrayList<Integer>();
    var written =
        LoraTraining.together(
            trainings,
            () -> false,
            (training, model) -> {
              tried.add(model.adapters().size());
              return tried.getLast() > 2 ? Optional.of("too little memory") : Optional.empty();
            });
    assertThat(tried).containsExactly(3, 2);
    assertThat(written).extracting(path -> path.getFileName().toString()).isEqualTo(names);
    for (var path : written) {
      assertThat(path.resolve("adapter_model.safetensors")).isNotEmptyFile();
    }
  }

  /** One adapter over several tasks: all of their samples, or as many of each. */
  @Test
  void aMixtureTakesEveryTask() throws Exception {
    task("zebra", "stripes");
    task("crow", "black");
    var files = new java.util.TreeMap<>(Map.of("zebra", data("zebra"), "crow", data("crow")));
    for (int perTask : new int[] {0, 3}) {
      var training =
          new LoraTraining(
              TrainConfig.lora(Map.of(), Map.of("max_steps", 1, "device", "cpu")),
              Fixtures.TINY.resolve("base"),
              "mixed",
              files,
              perTask,
              folder.resolve("adapters/mixed" + perTask),
              false,
              Flags.AUTO);
      try (var tokenizer =
          org.meteora.generate.Tokenizer.load(Fixtures.TINY.resolve("base"), Integer.MAX_VALUE)) {
        var samples =
            LoraTraining.samples(
                training.config(),
                files,
                perTask,
                tokenizer,
                new org.meteora.train.batch.TaskSamples.Tokenization(512, -1, true));
        for (var task : List.of("zebra", "crow")) {
          assertThat(samples.train())
              .filteredOn(sample -> sample.id().startsWith(task))
              .hasSize(perTask == 0 ? 22 : 3);
          assertThat(samples.eval()).filteredOn(sample -> sample.id().startsWith(task)).hasSize(2);
        }
      }
      var written =
          training.run(Collective.single(), Collective.single(), () -> false).orElseThrow();
      var how = Jsonl.readFile(written.resolve("training.json"));
      assertThat(how.get("data").toString()).contains("crow", "zebra");
      assertThat(how.get("samples_per_task").asInt(0)).isEqualTo(perTask);
    }
  }

  @Test
  void theWholeWay() throws Exception {
    task("zebra", "stripes");
    task("alpaca", "wool");
    task("crow", "black");
    lora("zebra", Map.of("r", 4, "use_rslora", true));
    lora("alpaca", Map.of("target_modules", "q_proj,down_proj"));
    var crow = lora("crow", Map.of("append_eos", true));

    // the very keys and shapes that peft wrote for an adapter of the same model
    try (var ours = SafetensorsFile.open(crow.resolve("adapter_model.safetensors"));
        var peft =
            SafetensorsFile.open(
                Fixtures.TINY.resolve("adapters/task_a/adapter_model.safetensors"))) {
      assertThat(ours.tensors().keySet()).isEqualTo(peft.tensors().keySet());
      peft.tensors()
          .forEach(
              (name, info) -> {
                assertThat(ours.tensors().get(name).shape()).as(name).isEqualTo(info.shape());
                assertThat(ours.tensors().get(name).dtype()).isEqualTo(info.dtype());
              });
      assertThat(ours.metadata()).containsEntry("format", "pt");
    }
    var written = Jsonl.readFile(crow.resolve("adapter_config.json"));
    assertThat(written.get("peft_type").asText()).isEqualTo("LORA");
    assertThat(written.get("task_type").asText()).isEqualTo("CAUSAL_LM");
    assertThat(written.get("bias").asText()).isEqualTo("none");
    try (var zebra = LoraAdapter.open(folder.resolve("adapters/zebra"))) {
      assertThat(zebra.config().rank()).isEqualTo(4);
      assertThat(zebra.config().rsLora()).isTrue();
    }

    Map<String, Object> options =
        Map.of(
            "max_steps",
            6,
            "eval_steps",
            3,
            "learning_rate",
            3e-3,
            "device",
            "cpu",
            "append_eos",
            true);
    var result =
        meteora(options, true, false)
            .run(Collective.single(), Collective.single(), () -> false)
            .orElseThrow();
    assertThat(result.resolve("config.json")).exists();
    assertThat(result.resolve("tokenizer.json")).exists();
    try (var loaded = loadMeteora(Fixtures.TINY.resolve("base"), result)) {
      assertThat(loaded.adapterNames()).containsExactly("crow", "zebra", "alpaca");
    }
    var metrics = Files.readAllLines(folder.resolve("run/metrics.jsonl"));
    assertThat(metrics).hasSize(9).last().asString().contains("gate_accuracy_by_task");
    assertThat(folder.resolve("run/loss.png")).isNotEmptyFile();
    assertThat(folder.resolve("run/gate-accuracy.png")).isNotEmptyFile();
    var how = Jsonl.readFile(result.resolve("training.json"));
    assertThat(how.get("tasks").toString()).isEqualTo("[\"crow\",\"zebra\",\"alpaca\"]");
    assertThat(how.get("steps").asLong()).isEqualTo(6);
    assertThat(how.get("routing_top_k").asInt()).isEqualTo(2);
    assertThat(how.get("learning_rate").asDouble()).isEqualTo(3e-3);
    assertThat(how.get("eval_steps").asInt()).isEqualTo(3);
    assertThat(how.get("forward_mode").asText()).isEqualTo("auto");
    assertThat(how.get("single_adapter").isNull()).isTrue();
    assertThat(how.get("dtype").asText()).isEqualTo("f32");
    assertThat(how.get("device").asText()).isEqualTo("cpu");
    assertThat(how.get("base_model_path").asText())
        .isEqualTo(Fixtures.TINY.resolve("base").toString());
    assertThat(how.get("adapter_dir").asText()).isEqualTo(folder.resolve("adapters").toString());
    how = Jsonl.readFile(folder.resolve("adapters/zebra/training.json"));
    assertThat(how.get("r").asInt()).isEqualTo(4);
    assertThat(how.get("use_rslora").asBoolean()).isTrue();
    assertThat(how.get("steps").asLong()).isEqualTo(4);
    assertThat(how.get("data").path(0).asText()).isEqualTo(data("zebra").toString());
    // a checkpoint in between loads too
    loadMeteora(Fixtures.TINY.resolve("base"), folder.resolve("run/checkpoint-00000006")).close();

    assertThatThrownBy(
            () ->
                meteora(options, false, false)
                    .run(Collective.single(), Collective.single(), () -> false))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("--resume");
    assertThat(
            meteora(options, false, true)
                .run(Collective.single(), Collective.single(), () -> false))
        .contains(result);
    assertThat(Files.readAllLines(folder.resolve("run/metrics.jsonl"))).isEqualTo(metrics);
    assertThatThrownBy(
            () -> MeteoraTraining.order(folder.resolve("adapters"), List.of("zebra", "crw")))
        .hasMessageContaining("did you mean crow?");
  }

  /** An adapter begins with B = 0: the first step of a layer does not depend on those before it. */
  @Test
  void trainsTheLayersAskedForAlone() throws Exception {
    task("crow", "black");
    var options = Map.<String, Object>of("max_steps", 1, "dropout", 0, "max_grad_norm", 0);
    var every = lora("crow", options);
    Files.move(every, folder.resolve("every"));
    for (boolean recompute : new boolean[] {true, false}) {
      var some = new LinkedHashMap<>(options);
      some.put("layers_to_transform", List.of(1));
      some.put("gradient_checkpointing", recompute);
      var second = lora("crow", some);
      try (var all = LoraAdapter.open(folder.resolve("every"));
          var one = LoraAdapter.open(second);
          var manager = Devices.newManager(Device.cpu())) {
        assertThat(one.config().layersToTransform()).containsExactly(1);
        assertThat(one.weights().tensors()).hasSize(14);
        for (var name : one.weights().tensors().keySet()) {
          assertThat(name).contains(".layers.1.");
          assertThat(one.weights().read(manager, name).toFloatArray())
              .usingComparatorWithPrecision(1e-6f)
              .containsExactly(all.weights().read(manager, name).toFloatArray());
        }
      }
      Files.move(second, folder.resolve("second-" + recompute));
    }
    assertThatThrownBy(() -> lora("crow", Map.of("layers_to_transform", "2")))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("there is no layer 2");
  }

  @Test
  void anAdapterDoesNotGoOnAsAnother() throws Exception {
    task("crow", "black");
    var base = copy(Fixtures.TINY.resolve("base"), folder.resolve("base"));
    lora(base, "crow", Map.of(), false);
    var config = folder.resolve("adapters/crow/adapter_config.json");
    var written = Files.readString(config);
    Map.<String, Map<String, Object>>of(
            "alpha was 16.0, now it is 32.0", Map.of("alpha", 32),
            "use_rslora was false, now it is true", Map.of("use_rslora", true),
            "response_only was true, now it is false", Map.of("response_only", false),
            "r was 8, now it is 4", Map.of("r", 4),
            "append_eos was false, now it is true", Map.of("append_eos", true),
            "dtype was f32, now it is bf16", Map.of("dtype", "bf16"))
        .forEach(
            (message, other) ->
                assertThatThrownBy(() -> lora(base, "crow", other, true))
                    .isInstanceOf(UserException.class)
                    .hasMessageEndingWith(": " + message));
    widenHeader(base.resolve("model.safetensors"));
    assertThatThrownBy(() -> lora(base, "crow", Map.of(), true))
        .isInstanceOf(UserException.class)
        .hasMessageStartingWith("cannot resume from ")
        .hasMessageEndingWith(": the base model's files are others than then");
    assertThat(Files.readString(config)).isEqualTo(written);
  }

  @Test
  void gatesDoNotGoOnWithOtherAdapters() throws Exception {
    task("crow", "black");
    task("zebra", "stripes");
    lora("crow", Map.of());
    lora("zebra", Map.of("max_steps", 1));
    Map<String, Object> options =
        Map.of("max_steps", 2, "train", "gates", "eval_steps", 9, "device", "cpu");
    meteora(options, false, false).run(Collective.single(), Collective.single(), () -> false);
    var config = folder.resolve("adapters/crow/adapter_config.json");
    var written = Files.readString(config);
    Files.writeString(config, written.replace("\"lora_alpha\" : 16.0", "\"lora_alpha\" : 32.0"));
    assertThat(Files.readString(config)).isNotEqualTo(written);
    othersThanThen(options);
    Files.writeString(config, written);
    assertThat(
            meteora(options, false, true)
                .run(Collective.single(), Collective.single(), () -> false))
        .isPresent();
    var weights = "adapter_model.safetensors";
    Files.delete(folder.resolve("adapters/crow").resolve(weights));
    Files.copy(
        folder.resolve("adapters/zebra").resolve(weights),
        folder.resolve("adapters/crow").resolve(weights));
    othersThanThen(options);
  }

  private void othersThanThen(Map<String, Object> options) {
    assertThatThrownBy(
            () ->
                meteora(options, false, true)
                    .run(Collective.single(), Collective.single(), () -> false))
        .isInstanceOf(UserException.class)
        .hasMessageStartingWith("cannot resume from ")
        .hasMessageEndingWith(": the adapters are others than then");
  }

  private static Path copy(Path from, Path to) throws Exception {
    Files.createDirectories(to);
    try (var files = Files.newDirectoryStream(from)) {
      for (var file : files) {
        Files.copy(file, to.resolve(file.getFileName()));
      }
    }
    return to;
  }

  /** Another header of the same tensors: spaces at its end. */
  private static void widenHeader(Path file) throws Exception {
    var old = ByteBuffer.wrap(Files.readAllBytes(file)).order(ByteOrder.LITTLE_ENDIAN);
    int length = (int) old.getLong();
    var wider = ByteBuffer.allocate(old.capacity() + 8).order(ByteOrder.LITTLE_ENDIAN);
    wider.putLong(length + 8L).put(old.slice(8, length)).put(" ".repeat(8).getBytes());
    wider.put(old.slice(8 + length, old.capacity() - 8 - length));
    Files.delete(file);
    Files.write(file, wider.array());
  }

  @Test
  void gatesAreTrainedAsTheAdaptersWere() throws Exception {
    task("crow", "black");
    task("zebra", "stripes");
    var how = Map.<String, Object>of("append_eos", true, "response_only", false, "max_steps", 1);
    lora("crow", how);
    lora("zebra", how);
    Map<String, Object> options = Map.of("max_steps", 1, "device", "cpu");
    var result =
        meteora(options, false, false)
            .run(Collective.single(), Collective.single(), () -> false)
            .orElseThrow();
    var record = Jsonl.readFile(result.resolve("training.json"));
    assertThat(record.get("append_eos").asBoolean()).isTrue();
    assertThat(record.get("response_only").asBoolean()).isFalse();
    assertThat(record.get("recipe").asText()).isEqualTo("default");
    assertThat(record.get("kept_step").asLong()).isEqualTo(1);
    var last = Files.readAllLines(folder.resolve("run/metrics.jsonl")).getLast();
    var evaluation = Jsonl.JSON.readTree(last);
    for (var whose : List.of("", "oracle_", "base_")) {
      for (var what : List.of("answer_loss", "prompt_loss")) {
        assertThat(evaluation.path(whose + what).isNumber()).as(whose + what).isTrue();
        assertThat(evaluation.path(whose + what + "_by_task").size()).isEqualTo(2);
      }
    }
    assertThat(evaluation.get("oracle_answer_loss"))
        .isNotEqualTo(evaluation.get("base_answer_loss"));

    Files.move(folder.resolve("adapters/zebra"), folder.resolve("before"));
    lora("zebra", Map.of("append_eos", true, "max_steps", 1));
    var other = new LinkedHashMap<>(options);
    assertThatThrownBy(
            () ->
                meteora(other, false, true)
                    .run(Collective.single(), Collective.single(), () -> false))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("response_only is false in " + folder.resolve("adapters/crow"))
        .hasMessageContaining("true in " + folder.resolve("adapters/zebra"))
        .hasMessageContaining("--response-only");
  }

  @Test
  void aFlagThatSwitchesTheGatesOffIsRefused() {
    var training =
        new MeteoraTraining(
            TrainConfig.meteora(Map.of(), Map.of()),
            Fixtures.TINY.resolve("base"),
            folder.resolve("adapters"),
            folder.resolve("datasets"),
            folder.resolve("run"),
            false,
            false,
            Flags.fromEnvironment(Map.of("MOELINEAR_SINGLE_MOE_LORA", "0")));
    assertThatThrownBy(() -> training.run(Collective.single(), Collective.single(), () -> false))
        .isInstanceOf(UserException.class)
        .hasMessageStartingWith("MOELINEAR_SINGLE_MOE_LORA=0 ")
        .hasMessageEndingWith(": unset it");
  }

  @Test
  void stoppedBeforeTheFirstStep() throws Exception {
    task("crow", "black");
    lora("crow", Map.of("max_steps", 1));
    Map<String, Object> options = Map.of("max_steps", 2, "device", "cpu", "eval_ratio", 0);
    assertThat(
            meteora(options, false, false)
                .run(Collective.single(), Collective.single(), () -> true))
        .isEmpty();
    assertThat(new Checkpoints(folder.resolve("run"), 1).list()).isEmpty();
    var train = TrainConfig.meteora(Map.of(), Map.of());
    assertThat(Run.stopped(train, 0, 2)).contains("nothing was done").contains("without --resume");
    assertThat(Run.stopped(train, 1, 2))
        .isEqualTo("stopped after step 1 of 2; go on with --resume");
    // other adapters may be finished: --resume skips those
    assertThat(Run.stopped(TrainConfig.lora(Map.of(), Map.of()), 0, 2))
        .isEqualTo("stopped before the first step of this adapter; go on with --resume");
    var asked = new int[1];
    meteora(options, false, false)
        .run(Collective.single(), Collective.single(), () -> asked[0]++ >= 1);
    assertThat(new Checkpoints(folder.resolve("run"), 1).list()).hasSize(1);
    assertThat(folder.resolve("run/metrics.jsonl")).isNotEmptyFile();
    assertThat(folder.resolve("run/loss.png")).doesNotExist();
  }

  private TaskSamples split(boolean responseOnly, int most, double ratio) {
    try (var tokenizer = Tokenizer.load(Fixtures.TINY.resolve("base"), Integer.MAX_VALUE)) {
      var how = new TaskSamples.Tokenization(most, -1, responseOnly);
      return TaskSamples.read(data("crow"), "crow", 0, tokenizer, how, ratio, 42);
    }
  }

  private static List<String> ids(List<TrainingSample> samples) {
    return samples.stream().map(TrainingSample::id).toList();
  }

  @Test
  void whatIsHeldOutDoesNotDependOnWhatIsDropped() throws Exception {
    var lines = new ArrayList<String>();
    for (int i = 1; i <= 40; i++) {
      lines.add(
          Jsonl.JSON.writeValueAsString(
              Map.of(
                  "prompt",
                  "[INST] " + "long ".repeat(i % 4 == 0 ? 60 : 1) + i + " [/INST]\n",
                  "response",
                  i % 7 == 0 ? "" : "black")));
    }
    Files.createDirectories(data("crow").getParent());
    Files.write(data("crow"), lines);
    var whole = split(false, 4096, 0.25);
    assertThat(whole.train()).hasSize(30);
    assertThat(whole.eval()).hasSize(10);
    for (var some : List.of(split(true, 4096, 0.25), split(true, 48, 0.25))) {
      assertThat(some.train().size() + some.eval().size()).isLessThan(40);
      assertThat(ids(whole.train())).containsSubsequence(ids(some.train()));
      assertThat(ids(whole.eval())).containsSubsequence(ids(some.eval()));
    }
    assertThat(split(true, 48, 0).eval()).isEmpty();
  }

  @Test
  void oneSampleIsTrainedOn() throws Exception {
    task("crow", "black");
    var lines = Files.readAllLines(data("crow"));
    Files.write(data("crow"), lines.subList(0, 1));
    assertThat(split(false, 4096, 0.9).train()).hasSize(1);
    assertThat(split(false, 4096, 0.9).eval()).isEmpty();
    assertThat(lora("crow", Map.of("eval_ratio", 0.6, "max_steps", 1))).isDirectory();
    // whichever of two lines can be learnt from, it is
    for (int i = 0; i < 2; i++) {
      var two = new ArrayList<>(List.of("{\"prompt\":\"a b\",\"response\":\"\"}"));
      two.add(i, lines.getFirst());
      Files.write(data("crow"), two);
      assertThat(ids(split(true, 4096, 0.5).train())).containsExactly("crow:" + (i + 1));
      assertThat(split(true, 4096, 0.5).eval()).isEmpty();
    }
  }

  private static LoadedModel loadMeteora(Path base, Path checkpoint) {
    return LoadedModel.load(
        new LoadedModel.Spec(
            base,
            "meteora",
            Optional.of(checkpoint),
            Optional.empty(),
            Optional.empty(),
            Optional.empty(),
            "cpu",
            Optional.empty(),
            Flags.AUTO,
            Routers.GATE));
  }
}
