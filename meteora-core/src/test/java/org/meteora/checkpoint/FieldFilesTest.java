package org.meteora.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import ai.djl.ndarray.NDArray;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.Consumer;
import java.util.function.UnaryOperator;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.meteora.Fixtures;
import org.meteora.UserException;
import org.meteora.io.Jsonl;
import org.meteora.moe.Flags;
import org.meteora.parallel.Collective;
import org.meteora.router.Routers;
import org.meteora.safetensors.SafetensorsFile;
import org.meteora.safetensors.SafetensorsWriter;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/** Files as people have them, and what transformers and PEFT make of them. */
class FieldFilesTest {
  private static final String PREFIX = "base_model.model.";
  private static final String EMBEDDING = "model.embed_tokens.weight";

  @TempDir Path folder;

  private static LoadedModel load(Path base, String model, Path adapters) {
    return LoadedModel.load(
        new LoadedModel.Spec(
            base,
            model,
            Optional.of(Fixtures.tinyLlama().resolve("meteora")),
            Optional.of(adapters),
            Optional.empty(),
            Optional.empty(),
            "cpu",
            Optional.empty(),
            Flags.AUTO,
            Routers.GATE));
  }

  private static List<String> prompts() {
    return Jsonl.read(
        Fixtures.folder().resolve("field/prompts.jsonl"),
        (node, where) -> Jsonl.text(node, "prompt", where));
  }

  private static List<List<Integer>> answers(LoadedModel model) {
    var settings =
        model.generationConfig().withGreedy().withNoRepeatNgramSize(0).withMaxNewTokens(16);
    var result = new ArrayList<List<Integer>>();
    for (var prompt : prompts()) {
      var ids = model.tokenizer().encode(prompt, true);
      var tokens = model.generator().generate(List.of(ids), settings).getFirst();
      result.add(java.util.Arrays.stream(tokens).boxed().toList());
    }
    return result;
  }

  private static List<List<Integer>> expected(String name) {
    return Jsonl.read(
        Fixtures.folder().resolve("field/" + name + ".expected.jsonl"),
        (node, where) -> {
          var ids = new ArrayList<Integer>();
          node.get("token_ids").forEach(id -> ids.add(id.asInt()));
          return ids;
        });
  }

  private static Path base() {
    return Fixtures.tinyLlama().resolve("base");
  }

  private static void copy(Path from, Path to) throws IOException {
    Files.createDirectories(to);
    try (var files = Files.newDirectoryStream(from)) {
      for (var file : files) {
        Files.copy(file, to.resolve(file.getFileName()));
      }
    }
  }

  /** Writes a safetensors file anew, after a change of its tensors. */
  private static void rewrite(Path path, Consumer<Map<String, NDArray>> change) throws IOException {
    var fresh = path.resolveSibling("new.safetensors");
    try (var manager = Devices.newManager(ai.djl.Device.cpu())) {
      var tensors = new LinkedHashMap<String, NDArray>();
      try (var file = SafetensorsFile.open(path)) {
        file.tensors().keySet().forEach(key -> tensors.put(key, file.read(manager, key)));
        change.accept(tensors);
        SafetensorsWriter.write(fresh, tensors, Map.of("format", "pt"));
      }
    }
    Files.move(fresh, path, java.nio.file.StandardCopyOption.REPLACE_EXISTING);
  }

  private Path adapter() throws IOException {
    copy(Fixtures.tinyLlama().resolve("adapters/task_a"), folder.resolve("adapters/task_a"));
    return folder.resolve("adapters/task_a/adapter_model.safetensors");
  }

  private Path copiedBase() throws IOException {
    copy(base(), folder.resolve("base"));
    return folder.resolve("base");
  }

  private static void rename(Map<String, NDArray> tensors, UnaryOperator<String> name) {
    var old = new LinkedHashMap<>(tensors);
    tensors.clear();
    old.forEach((key, value) -> tensors.put(name.apply(key), value));
  }

  private List<List<Integer>> answersOf(Path base, String model, Path adapters) {
    try (var loaded = load(base, model, adapters)) {
      return answers(loaded);
    }
  }

  @ParameterizedTest
  @ValueSource(strings = {"regex", "fan-in-fan-out"})
  void adaptersOfTheFieldAnswerAsWithPeft(String name) {
    assertThat(answersOf(base(), name, Fixtures.folder().resolve("field")))
        .isEqualTo(expected(name));
  }

  @ParameterizedTest
  @ValueSource(strings = {"pissa", "alora"})
  void adaptersThatComputeSomethingElseAreRefusedByTheirKey(String name) {
    var base = base();
    var adapters = Fixtures.folder().resolve("field");
    assertThatThrownBy(() -> load(base, name, adapters))
        .isInstanceOf(UserException.class)
        .hasMessageContaining(
            name.equals("pissa") ? "init_lora_weights" : "alora_invocation_tokens");
  }

  @Test
  void aTokenWithoutARowIsRefusedOnlyWhereItIsUsed() throws IOException {
    var base = copiedBase();
    for (var file : List.of("tokenizer.json", "tokenizer_config.json")) {
      Files.copy(
          Fixtures.folder().resolve("field/pad-token").resolve(file),
          base.resolve(file),
          java.nio.file.StandardCopyOption.REPLACE_EXISTING);
    }
    try (var model = load(base, "base", folder)) {
      assertThat(answers(model)).isEqualTo(expected("pad-token"));
      assertThatThrownBy(() -> model.tokenizer().encode("now [PAD] then", true))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("[PAD]")
          .hasMessageContaining("embeds only 512");
    }
  }

  @ParameterizedTest
  @ValueSource(strings = {"default", "my_adapter", "no prefix", "both", "no head"})
  void keysOfOtherSpellingsMeanTheSame(String spelling) throws IOException {
    var file = adapter();
    var plain = answersOf(base(), "task_a", folder.resolve("adapters"));
    rewrite(
        file,
        tensors ->
            rename(
                tensors,
                key -> {
                  if (spelling.equals("no head")) { // made for the model without one
                    return PREFIX + key.substring((PREFIX + "model.").length());
                  }
                  var short_ = spelling.contains("o p") || spelling.equals("both");
                  var name = short_ ? key.substring(PREFIX.length()) : key;
                  return spelling.equals("no prefix")
                      ? name
                      : name.replaceFirst(
                          "(lora_[AB])\\.",
                          "$1." + (spelling.equals("both") ? "default" : spelling) + ".");
                }));
    assertThat(answersOf(base(), "task_a", folder.resolve("adapters"))).isEqualTo(plain);
  }

  @Test
  void twoAdaptersInOneFileAreRefused() throws IOException {
    rewrite(adapter(), tensors -> rename(tensors, key -> key.replace("lora_A.", "lora_A.one.")));
    assertThatThrownBy(() -> load(base(), "task_a", folder.resolve("adapters")))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("several adapters");
  }

  @Test
  void anAdapterInAnotherFormSaysHowToConvertIt() throws IOException {
    Files.move(adapter(), folder.resolve("adapters/task_a/adapter_model.bin"));
    assertThatThrownBy(() -> load(base(), "task_a", folder.resolve("adapters")))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("adapter_model.bin")
        .hasMessageContaining("save_file");
    Files.writeString(
        folder.resolve("adapters/task_a/adapter_config.json"),
        "{\"fine_tune_type\": \"lora\", \"num_layers\": 4,"
            + " \"lora_parameters\": {\"rank\": 8, \"scale\": 20.0, \"dropout\": 0.0}}");
    assertThatThrownBy(() -> load(base(), "task_a", folder.resolve("adapters")))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("mlx-lm")
        .hasMessageContaining("transposed");
  }

  @Test
  void tensorsThatTheConfigurationLeavesOutAreRefused() throws IOException {
    adapter();
    var config = folder.resolve("adapters/task_a/adapter_config.json");
    Files.writeString(
        config,
        Files.readString(config)
            .replaceFirst("\"exclude_modules\": *null", "\"exclude_modules\": [\"v_proj\"]"));
    assertThatThrownBy(() -> load(base(), "task_a", folder.resolve("adapters")))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("v_proj")
        .hasMessageContaining("exclude_modules");
  }

  @ParameterizedTest
  @ValueSource(strings = {"F32", "BF16"})
  void anEmbeddingThatEqualsTheBasesChangesNothing(String dtype) throws IOException {
    var file = adapter();
    var plain = answersOf(base(), "task_a", folder.resolve("adapters"));
    try (var weights = SafetensorsFile.open(base().resolve("model.safetensors"));
        var manager = Devices.newManager(ai.djl.Device.cpu())) {
      var embedding = Ops.cast(weights.read(manager, EMBEDDING), Dtype.valueOf(dtype));
      rewrite(file, tensors -> tensors.put(PREFIX + EMBEDDING, embedding));
    }
    assertThat(answersOf(base(), "task_a", folder.resolve("adapters"))).isEqualTo(plain);
    TrainableModel.meteora(spec(), List.of(folder.resolve("adapters/task_a")), Collective.single())
        .close();
  }

  @Test
  void anEmbeddingOfItsOwnIsUsedAloneAndRefusedAmongOthers() throws IOException {
    var file = adapter();
    // the reference: the same numbers in the base itself
    var other = copiedBase();
    try (var manager = Devices.newManager(ai.djl.Device.cpu())) {
      var turned = new NDArray[1];
      rewrite(
          other.resolve("model.safetensors"),
          tensors -> {
            turned[0] = tensors.get(EMBEDDING).flip(0).duplicate();
            turned[0].attach(manager);
            tensors.put(EMBEDDING, turned[0]);
          });
      var expected = answersOf(other, "task_a", folder.resolve("adapters"));
      rewrite(
          file,
          tensors ->
              tensors.put(PREFIX + "model.embed_tokens.modules_to_save.default.weight", turned[0]));
      assertThat(answersOf(base(), "task_a", folder.resolve("adapters"))).isEqualTo(expected);
    }
    assertThatThrownBy(
            () ->
                TrainableModel.meteora(
                    spec(), List.of(folder.resolve("adapters/task_a")), Collective.single()))
        .isInstanceOf(UserException.class)
        .hasMessageContaining(EMBEDDING)
        .hasMessageContaining("--model task_a");
  }

  private static TrainableModel.Spec spec() {
    return new TrainableModel.Spec(
        base(), Optional.of("cpu"), Optional.empty(), 2, 0, 1, Flags.AUTO);
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void ofTiedWeightsTheFilesHeadIsUsedAsTransformersDoes(boolean differs) throws IOException {
    var untied = answersOf(base(), "base", folder);
    var base = copiedBase();
    var config = base.resolve("config.json");
    Files.writeString(
        config,
        Files.readString(config)
            .replaceFirst("\"tie_word_embeddings\": *false", "\"tie_word_embeddings\": true"));
    assertThat(Files.readString(config)).contains("\"tie_word_embeddings\": true");
    if (differs) {
      assertThat(answersOf(base, "base", folder)).isEqualTo(untied);
      return;
    }
    // an equal head, none, and a head alone are all the embedding
    rewrite(
        base.resolve("model.safetensors"),
        tensors -> tensors.put("lm_head.weight", tensors.get(EMBEDDING)));
    var equal = answersOf(base, "base", folder);
    rewrite(base.resolve("model.safetensors"), tensors -> tensors.remove("lm_head.weight"));
    assertThat(answersOf(base, "base", folder)).isEqualTo(equal);
    rewrite(
        base.resolve("model.safetensors"),
        tensors -> tensors.put("lm_head.weight", tensors.remove(EMBEDDING)));
    assertThat(answersOf(base, "base", folder)).isEqualTo(equal).isNotEqualTo(untied);
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "model.norm.weight",
        "model.layers.1.input_layernorm.weight",
        "model.layers.0.self_attn.q_proj.weight"
      })
  void aValueThatIsNoNumberIsFoundAtLoading(String name) throws IOException {
    var base = copiedBase();
    rewrite(
        base.resolve("model.safetensors"),
        tensors -> tensors.put(name, tensors.get(name).mul(Float.NaN)));
    assertThatThrownBy(() -> load(base, "base", folder))
        .isInstanceOf(UserException.class)
        .hasMessageContaining(name)
        .hasMessageContaining("no finite number");
  }

  @Test
  void anAdapterWithAValueThatIsNoNumberIsRefused() throws IOException {
    var key = PREFIX + "model.layers.1.mlp.up_proj.lora_B.weight";
    rewrite(adapter(), tensors -> tensors.put(key, tensors.get(key).div(0)));
    assertThatThrownBy(() -> load(base(), "task_a", folder.resolve("adapters")))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("up_proj.lora_B")
        .hasMessageContaining("no finite number");
  }

  /** Finite weights whose products are not: found when the first token is chosen. */
  @Test
  void logitsThatAreNotFiniteEndTheSequenceWithALine() throws IOException {
    var base = copiedBase();
    rewrite(
        base.resolve("model.safetensors"),
        tensors -> {
          tensors.put("model.norm.weight", tensors.get("model.norm.weight").mul(0).add(3e38));
          tensors.put("lm_head.weight", tensors.get("lm_head.weight").mul(1e6));
        });
    try (var model = load(base, "base", folder)) {
      assertThatThrownBy(() -> answers(model))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("logits are not finite");
    }
  }

  /** Rows of an adapter that does not act on a module: left out, or there and not used. */
  @Test
  void bothFormsOfUnequalTargetsAreRead() throws IOException {
    var module = "model.layers.0.mlp.up_proj";
    copy(Fixtures.tinyLlama().resolve("meteora"), folder.resolve("checkpoint"));
    try (var names = Files.newDirectoryStream(Fixtures.tinyLlama().resolve("adapters"))) {
      for (var each : names) {
        copy(each, folder.resolve("adapters").resolve(each.getFileName().toString()));
      }
    }
    // the second of the four has nothing there any more
    rewrite(
        folder.resolve("adapters/task_b/adapter_model.safetensors"),
        tensors -> tensors.keySet().removeIf(key -> key.contains(module)));
    var full = meteora(); // its rows are in the file
    rewrite(
        folder.resolve("checkpoint/model.safetensors"),
        tensors -> {
          var a = PREFIX + module + ".lora_A.weight";
          var b = PREFIX + module + ".lora_B.weight";
          tensors.put(a, without(tensors.get(a), 0));
          tensors.put(b, without(tensors.get(b), 1));
        });
    assertThat(meteora()).isEqualTo(full);
  }

  private static NDArray without(NDArray stacked, int axis) {
    return Ops.narrow(stacked, axis, 0, 8).concat(Ops.narrow(stacked, axis, 16, 16), axis);
  }

  private List<List<Integer>> meteora() {
    try (var model =
        LoadedModel.load(
            new LoadedModel.Spec(
                base(),
                "meteora",
                Optional.of(folder.resolve("checkpoint")),
                Optional.of(folder.resolve("adapters")),
                Optional.empty(),
                Optional.empty(),
                "cpu",
                Optional.empty(),
                Flags.AUTO,
                Routers.GATE))) {
      return answers(model);
    }
  }
}
