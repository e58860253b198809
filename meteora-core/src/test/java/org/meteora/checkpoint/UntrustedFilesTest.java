package org.meteora.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import ai.djl.ndarray.NDArray;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.UnaryOperator;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.meteora.UserException;
import org.meteora.moe.Flags;
import org.meteora.router.Routers;
import org.meteora.safetensors.SafetensorsFile;
import org.meteora.safetensors.SafetensorsWriter;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/** Models, adapters and checkpoints whose files say something impossible, or more than is used. */
class UntrustedFilesTest {
  @TempDir Path folder;

  @BeforeEach
  void copyTiny() throws IOException {
    var tiny = Path.of(System.getProperty("meteora.root", ".."), "configs/tiny");
    try (Stream<Path> all = Files.walk(tiny)) {
      for (var from : all.toList()) {
        var to = folder.resolve(tiny.relativize(from).toString());
        if (Files.isDirectory(from)) {
          Files.createDirectories(to);
        } else {
          Files.copy(from, to);
        }
      }
    }
  }

  private LoadedModel load(String model, Flags flags) {
    return LoadedModel.load(
        new LoadedModel.Spec(
            folder.resolve("base"),
            model,
            Optional.of(folder.resolve("meteora")),
            Optional.of(folder.resolve("adapters")),
            Optional.empty(),
            Optional.empty(),
            "cpu",
            Optional.empty(),
            flags,
            Routers.GATE));
  }

  private LoadedModel load(String model) {
    return load(model, Flags.AUTO);
  }

  private void refused(String model, String message) {
    assertThatThrownBy(() -> load(model))
        .isInstanceOf(UserException.class)
        .hasMessageContaining(message);
  }

  private void edit(String file, UnaryOperator<String> change) throws IOException {
    var path = folder.resolve(file);
    Files.writeString(path, change.apply(Files.exists(path) ? Files.readString(path) : ""));
  }

  /** Writes a safetensors file anew, with another metadata or one more tensor. */
  private void rewrite(Path path, UnaryOperator<Map<String, String>> metadata, String more) {
    try (var manager = Devices.newManager(ai.djl.Device.cpu())) {
      var tensors = new LinkedHashMap<String, NDArray>();
      Map<String, String> old;
      try (var file = SafetensorsFile.open(path)) {
        for (var key : file.tensors().keySet()) {
          tensors.put(key, Ops.cast(file.read(manager, key), Dtype.F32));
        }
        old = file.metadata();
        if (more != null) {
          tensors.put(more, Ops.zeros(manager, Dtype.F32, 4, 4));
        }
        SafetensorsWriter.write(
            folder.resolve("new.safetensors"), tensors, metadata.apply(new LinkedHashMap<>(old)));
      }
      Files.move(
          folder.resolve("new.safetensors"),
          path,
          java.nio.file.StandardCopyOption.REPLACE_EXISTING);
    } catch (IOException e) {
      throw new java.io.UncheckedIOException(e);
    }
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "{\"do_sample\":true,\"temperature\":-1}|temperature is impossible: -1",
        "{\"do_sample\":true,\"temperature\":\"hot\"}|temperature is impossible: \"hot\"",
        "{\"do_sample\":true,\"top_p\":1.7}|top_p is impossible: 1.7",
        "{\"do_sample\":true,\"top_k\":-3}|top_k is impossible: -3",
        "{\"no_repeat_ngram_size\":-3}|no_repeat_ngram_size is impossible: -3",
        "{\"eos_token_id\":[\"x\"]}|eos_token_id is impossible: [\"x\"]",
        "{\"eos_token_id\":-1}|eos_token_id is impossible: -1"
      })
  void impossibleGenerationSettingsAreRefused(String json, String message) throws IOException {
    edit("base/generation_config.json", old -> json);
    refused("base", "generation_config.json: " + message);
  }

  @Test
  void settingsOfAModelThatDoesNotSampleStandByForOneThatIsAskedTo() throws IOException {
    edit("base/generation_config.json", old -> "{\"temperature\":0.6,\"top_p\":0.9}");
    try (var model = load("base")) {
      assertThat(model.generationConfig().sample()).isFalse();
      assertThat(model.generationConfig().temperature()).isEqualTo(0.6);
      assertThat(model.generationConfig().topP()).isEqualTo(0.9);
    }
    edit("base/generation_config.json", old -> "{\"temperature\":0.0}");
    try (var model = load("base")) {
      assertThat(model.generationConfig().temperature()).isEqualTo(1);
    }
  }

  @Test
  void anEndTokenBeyondTheVocabularyIsNotFedToTheModel() throws IOException {
    edit("base/generation_config.json", old -> "{\"eos_token_id\":[99999]}");
    try (var model = load("base")) {
      var config = model.generationConfig().withMaxNewTokens(3);
      assertThat(config.padTokenId()).isZero();
      var prompts = List.of(new int[] {5}, new int[] {5, 6, 7});
      assertThat(model.generator().generate(prompts, config)).allMatch(each -> each.length == 3);
    }
  }

  @ParameterizedTest
  @CsvSource({"rope_theta,0", "rope_theta,\"x\"", "rms_norm_eps,\"x\"", "rms_norm_eps,-1"})
  void impossibleModelSettingsAreRefused(String key, String value) throws IOException {
    edit(
        "base/config.json",
        old ->
            old.replaceAll("\"" + key + "\"\\s*:\\s*[^,}\\s]+", "\"" + key + "\": " + value)
                .replaceFirst("\\{", old.contains(key) ? "{" : "{\"" + key + "\": " + value + ","));
    refused("base", key + " must be a number above 0");
  }

  @Test
  void anAdapterWithMoreThanProjectionsIsRefused() throws IOException {
    var file = folder.resolve("adapters/sort_letters/adapter_model.safetensors");
    rewrite(file, old -> old, "base_model.model.lm_head.lora_A.weight");
    refused("sort_letters", "lm_head.lora_A.weight");
  }

  @Test
  void anAdapterThatTrainedModulesWholeIsRefused() throws IOException {
    edit(
        "adapters/sort_letters/adapter_config.json",
        old -> old.replaceFirst("\\{", "{\"modules_to_save\": [\"lm_head\"],"));
    refused("sort_letters", "modules_to_save [\"lm_head\"]");
  }

  @Test
  void anAdapterOfAnotherRankThanItsConfigurationSaysIsRefused() throws IOException {
    edit(
        "adapters/sort_letters/adapter_config.json",
        old -> old.replaceFirst("\"r\"\\s*:\\s*\\d+", "\"r\": 32"));
    refused("sort_letters", "its adapter_config.json says 32");
  }

  @ParameterizedTest
  @CsvSource({
    "(\"rank\":\\{\"[^\"]*\":)\\d+,$1-4",
    "(\"rank\":\\{\"[^\"]*\":)\\d+,$14000000",
    "(\"scale\":\\{\"[^\"]*\":)[0-9.]+,$1\"x\"",
    "\"scale\":,\"scales\":"
  })
  void impossibleRanksAndScalesOfACheckpointAreRefused(String pattern, String replacement) {
    rewrite(
        folder.resolve("meteora/model.safetensors"),
        old -> {
          var entry = old.get(MeteoraCheckpoint.METADATA_KEY);
          var changed = entry.replaceFirst(pattern, replacement.replace("$14", "$1" + "4"));
          assertThat(changed).isNotEqualTo(entry);
          old.put(MeteoraCheckpoint.METADATA_KEY, changed);
          return old;
        },
        null);
    refused("meteora", "no possible rank and scale");
  }

  @Test
  void aSingleAdaptersFlagDoesNotConcernAPlainPeftModel() {
    var flags = Flags.fromEnvironment(Map.of("MOELINEAR_SINGLE_MOE_LORA", "2"));
    try (var plain = load("sort_letters");
        var flagged = load("sort_letters", flags)) {
      var config = plain.generationConfig().withMaxNewTokens(8);
      var prompt = List.of(new int[] {5, 6, 7});
      assertThat(flagged.generator().generate(prompt, config).getFirst())
          .isEqualTo(plain.generator().generate(prompt, config).getFirst());
    }
  }
}
