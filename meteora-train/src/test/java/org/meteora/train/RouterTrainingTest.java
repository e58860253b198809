package org.meteora.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import ai.djl.ndarray.NDArray;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Random;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.meteora.UserException;
import org.meteora.checkpoint.LoadedModel;
import org.meteora.checkpoint.TrainableModel;
import org.meteora.io.Digests;
import org.meteora.io.Jsonl;
import org.meteora.model.LlamaTraining.Recompute;
import org.meteora.moe.Flags;
import org.meteora.moe.Router;
import org.meteora.parallel.Collective;
import org.meteora.safetensors.SafetensorsFile;
import org.meteora.tensor.Ops;
import org.meteora.train.batch.Batch;
import org.meteora.train.optim.FlatParameters;

/** Phatgoose's vectors and LoRA-Flow's gates: gradients, and from data to files that load. */
class RouterTrainingTest {
  private static final Path BASE = Fixtures.TINY.resolve("base");
  private static final Path ADAPTERS = Fixtures.TINY.resolve("adapters");

  @TempDir Path folder;

  @BeforeEach
  void needsFixtures() {
    Fixtures.require();
  }

  private static List<Path> adapters() {
    return org.meteora.lora.LoraAdapter.list(ADAPTERS);
  }

  private static TrainableModel model(boolean flow) {
    var spec =
        new TrainableModel.Spec(BASE, Optional.of("cpu"), Optional.of("f32"), 1, 0, 1, Flags.AUTO);
    return flow
        ? TrainableModel.loraFlow(spec, adapters(), Collective.single())
        : TrainableModel.phatgoose(spec, adapters().getFirst(), Collective.single());
  }

  /** Along random directions from random values, with and without checkpointing. */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void gradientsAgreeWithFiniteDifferences(boolean flow) {
    var batch = new Batch(ResumeTest.samples().subList(0, 4), false);
    try (var model = model(flow);
        var parameters =
            new FlatParameters(
                model.llama().manager(),
                flow ? model.loraFlowParameters() : model.parameters(true))) {
      var random = new Random(5);
      var start = new float[(int) parameters.size()];
      for (int i = 0; i < start.length; i++) {
        start[i] = (float) (0.1 * random.nextGaussian());
      }
      set(parameters, start, start, 0);
      var gradients = new ArrayList<float[]>();
      for (boolean checkpointing : new boolean[] {true, false}) {
        var learner =
            new LlamaLearner(
                model.llama(), model.context(), checkpointing ? Recompute.ALL : Recompute.NONE, 0);
        parameters.clearGradients();
        learner.learn(batch, 1, 0, 1, layer -> {});
        parameters.collectGradients();
        gradients.add(parameters.gradients().toFloatArray());
      }
      assertThat(gradients.get(0)).containsExactly(gradients.get(1), within(1e-4f));
      var learner = new LlamaLearner(model.llama(), model.context(), Recompute.ALL, 0);
      double norm = 0;
      for (float each : gradients.get(0)) {
        norm += each * each;
      }
      norm = Math.sqrt(norm);
      assertThat(norm).isGreaterThan(0.01);
      var way = gradients.get(0).clone();
      for (int i = 0; i < way.length; i++) {
        way[i] /= (float) norm;
      }
      double step = 0.02;
      set(parameters, start, way, step);
      double up = learner.evaluate(batch).languageModel();
      set(parameters, start, way, -step);
      double down = learner.evaluate(batch).languageModel();
      assertThat((up - down) / (2 * step)).isCloseTo(norm, within(0.02 * norm));
    }
  }

  private static void set(FlatParameters parameters, float[] start, float[] way, double step) {
    var moved = new float[start.length];
    for (int i = 0; i < start.length; i++) {
      moved[i] = (float) (start[i] + step * way[i]);
    }
    try (var scope = parameters.manager().newSubManager()) {
      Ops.copy(parameters.values(), scope.create(moved));
    }
    parameters.publish();
  }

  /** At first a vector is 0, and its adapter counts half; LoRA-Flow begins with all alike. */
  @Test
  void bothBeginWhereTheirPapersDo() {
    var batch = new Batch(ResumeTest.samples().subList(0, 4), false);
    try (var model = model(false)) {
      var learner = new LlamaLearner(model.llama(), model.context(), Recompute.ALL, 0);
      var half = new Router.Fixed("half", 1, List.of(0), List.of(0.5f));
      assertThat(learner.evaluate(batch).languageModel())
          .isCloseTo(with(model, half).evaluate(batch).languageModel(), within(1e-3));
    }
    try (var model = model(true)) {
      var learner = new LlamaLearner(model.llama(), model.context(), Recompute.ALL, 0);
      var uniform = Router.uniform(adapters().size());
      assertThat(learner.evaluate(batch).languageModel())
          .isCloseTo(with(model, uniform).evaluate(batch).languageModel(), within(1e-3));
    }
  }

  private static LlamaLearner with(TrainableModel model, Router router) {
    // the only adapter needs no router, unless it weighs
    Router weighing =
        router instanceof Router.Fixed fixed
            ? new Router.Weighing() {
              @Override
              public String name() {
                return fixed.name();
              }

              @Override
              public NDArray weights(
                  org.meteora.moe.GatedLinear linear,
                  NDArray x,
                  org.meteora.moe.ForwardContext context) {
                int tokens = (int) x.getShape().get(0);
                int n = linear.bank().size();
                var weights = new float[tokens * n];
                Arrays.fill(weights, fixed.weights().getFirst());
                return x.getManager().create(weights, Ops.shape(tokens, n));
              }
            }
            : router;
    return new LlamaLearner(
        model.llama(),
        model.context().withRouting(model.context().routing().withRouter(weighing)),
        Recompute.ALL,
        0);
  }

  private Path data(String name, String word) throws Exception {
    var lines = new ArrayList<String>();
    for (int i = 0; i < 24; i++) {
      lines.add(
          Jsonl.JSON.writeValueAsString(
              Map.of(
                  "prompt", "[INST] " + word + " " + i + " [/INST]\n", "response", word + word)));
    }
    var file = Files.createDirectories(folder.resolve(name)).resolve("train.jsonl");
    Files.write(file, lines);
    return file;
  }

  private static Map<String, Object> options() {
    return new LinkedHashMap<>(Map.of("device", "cpu", "batch_size", 4, "dropout", 0));
  }

  @Test
  void vectorsOfAnAdapterThatIsThereAreTrainedAndRead() throws Exception {
    var file = data("zebra", "stripes");
    var name = adapters().getFirst().getFileName();
    var adapter = folder.resolve("adapters").resolve(name);
    Files.createDirectories(adapter);
    for (var each : List.of("adapter_config.json", "adapter_model.safetensors")) {
      Files.copy(adapters().getFirst().resolve(each), adapter.resolve(each));
    }
    var before = Digests.ofFile(adapter.resolve("adapter_model.safetensors"));
    var config = TrainConfig.phatgoose(Map.of(), options(), 6);
    assertThat(config.learningRate()).isEqualTo(5e-3);
    var training =
        new PhatgooseTraining(config, BASE, adapter, Map.of("zebra", file), 0, false, Flags.AUTO);
    var written = training.run(Collective.single(), Collective.single(), () -> false).orElseThrow();
    assertThat(Digests.ofFile(adapter.resolve("adapter_model.safetensors"))).isEqualTo(before);
    try (var vectors = SafetensorsFile.open(written)) {
      assertThat(vectors.metadata()).containsEntry("adapter_sha256", before);
      assertThat(vectors.tensors()).isNotEmpty();
      assertThat(vectors.tensors().keySet())
          .allMatch(key -> key.matches("base_model\\.model\\.model\\.layers.*phatgoose\\.weight"));
    }
    var how = Jsonl.readFile(adapter.resolve("training/phatgoose/training.json"));
    assertThat(how.get("steps").asInt()).isEqualTo(6);
    assertThat(how.has("r")).isFalse();
    assertThatThrownBy(() -> training.run(Collective.single(), Collective.single(), () -> false))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("--resume");
    try (var model =
        LoadedModel.load(
            new LoadedModel.Spec(
                BASE,
                "meteora",
                Optional.empty(),
                Optional.of(folder.resolve("adapters")),
                Optional.empty(),
                Optional.empty(),
                "cpu",
                Optional.empty(),
                Flags.AUTO,
                "phatgoose"))) {
      assertThat(model.adapterNames()).containsExactly(name.toString());
    }
  }

  @Test
  void loraFlowLearnsItsTaskFromAFewSamplesAndIsRead() throws Exception {
    var file = data("zebra", "stripes");
    var options = options();
    options.put("max_steps", 30);
    options.put("learning_rate", 0.05);
    var config = TrainConfig.loraFlow(Map.of("recipe", "paper", "batch_size", 9), options);
    assertThat(config.batchSize()).isEqualTo(4);
    var output = folder.resolve("run");
    var training =
        new LoraFlowTraining(
            config,
            BASE,
            ADAPTERS,
            List.of(),
            Map.of("zebra", file),
            10,
            output,
            false,
            Flags.AUTO);
    var written = training.run(Collective.single(), Collective.single(), () -> false).orElseThrow();
    assertThat(written).isEqualTo(output.resolve("lora-flow"));
    var losses = new ArrayList<Double>();
    for (var line : Files.readAllLines(output.resolve("metrics.jsonl"))) {
      var evaluation = Jsonl.JSON.readTree(line);
      if (evaluation.path("event").asText().equals("eval")) {
        losses.add(evaluation.get("answer_loss").asDouble());
      }
    }
    assertThat(losses.getLast()).isLessThan(losses.getFirst());
    var how = Jsonl.readFile(written.resolve("training.json"));
    assertThat(how.get("samples").asInt()).isEqualTo(10);
    assertThat(how.get("steps").asInt()).isEqualTo(30);
    try (var model =
        LoadedModel.load(
            new LoadedModel.Spec(
                BASE,
                "meteora",
                Optional.of(written),
                Optional.of(ADAPTERS),
                Optional.empty(),
                Optional.empty(),
                "cpu",
                Optional.empty(),
                Flags.AUTO,
                "lora-flow"))) {
      assertThat(model.describe()).containsEntry("router", "lora-flow");
    }
  }

  @Test
  void settingsThatSayNothingOfItAreThePapers() {
    var config = TrainConfig.loraFlow(Map.of(), Map.of());
    assertThat(config.learningRate()).isEqualTo(1e-3);
    assertThat(config.epochs()).contains(5.0);
    assertThat(config.describeWithoutAdapter()).doesNotContainKeys("r", "alpha", "recipe");
    assertThatThrownBy(() -> TrainConfig.loraFlow(Map.of(), Map.of("train", "all")))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("train");
  }
}
