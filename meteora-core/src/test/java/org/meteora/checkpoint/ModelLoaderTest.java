package org.meteora.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import ai.djl.ndarray.NDManager;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.meteora.UserException;
import org.meteora.lora.LoraAdapter;
import org.meteora.model.MemoryNeed;
import org.meteora.moe.Flags;
import org.meteora.parallel.Collective;
import org.meteora.safetensors.SafetensorsFolder;

/** Loading that fails at any step leaves nothing open. */
class ModelLoaderTest {
  private static final Path TINY =
      Path.of(System.getProperty("meteora.root", "..")).resolve("configs/tiny");

  @TempDir Path folder;

  @BeforeEach
  void copy() throws IOException {
    for (var name : List.of("base", "meteora", "adapters")) {
      try (var files = Files.walk(TINY.resolve(name))) {
        for (var file : files.toList()) {
          Files.copy(file, folder.resolve(TINY.relativize(file)));
        }
      }
    }
  }

  /** Files of the folder that this process has mapped or open. */
  private List<String> open() throws IOException {
    var result = new ArrayList<String>();
    for (var line : Files.readAllLines(Path.of("/proc/self/maps"))) {
      if (line.contains(folder.toString())) {
        result.add(line);
      }
    }
    try (var descriptors = Files.list(Path.of("/proc/self/fd"))) {
      for (var descriptor : descriptors.toList()) {
        try {
          var target = Files.readSymbolicLink(descriptor).toString();
          if (target.startsWith(folder.toString())) {
            result.add(target);
          }
        } catch (IOException e) {
          // closed meanwhile
        }
      }
    }
    return result;
  }

  /** Writes other bytes of the same length in a file, at each place. */
  private void replace(String file, String from, String to) throws IOException {
    var path = folder.resolve(file);
    var text = Files.readString(path, StandardCharsets.ISO_8859_1);
    assertThat(text).contains(from);
    Files.writeString(path, text.replace(from, to), StandardCharsets.ISO_8859_1);
  }

  private LoadedModel.Spec inference() {
    return LoadedModel.Spec.meteora(folder.resolve("base"), folder.resolve("meteora"));
  }

  private TrainableModel.Spec training() {
    return new TrainableModel.Spec(
        folder.resolve("base"), Optional.of("cpu"), Optional.empty(), 2, 0, 1, Flags.AUTO);
  }

  @Test
  void aModelHasItsFilesOpenUntilItIsClosed() throws IOException {
    try (var model = LoadedModel.load(inference())) {
      assertThat(open()).isNotEmpty();
      assertThat(model.llama().manager().isOpen()).isTrue();
    }
    assertThat(open()).isEmpty();
  }

  @ParameterizedTest
  @CsvSource({
    "base/config.json, hidden_size, hidden_sise", // before anything is open
    "base/tokenizer.json, model, modes",
    "base/model.safetensors, model.norm.weight, model.morm.weight", // in building, after the layers
    "base/model.safetensors, model.embed_tokens, model.embed_tokess",
    "base/generation_config.json, {, [", // the last step of inference
    "meteora/model.safetensors, q_proj.moe_gate, q_proj.moe_gats", // opening the checkpoint
    "meteora/model.safetensors, down_proj.lora_B, down_proj.lora_C", // in building a layer
  })
  void closesWhatItOpened(String file, String from, String to) throws IOException {
    replace(file, from, to);
    assertThatThrownBy(() -> LoadedModel.load(inference())).isInstanceOf(UserException.class);
    assertThat(open()).isEmpty();
    // what training begins with: the base and the adapters' own folders
    if (file.startsWith("base") && !file.contains("generation")) {
      var folders = LoraAdapter.list(folder.resolve("adapters"));
      assertThatThrownBy(() -> TrainableModel.meteora(training(), folders, Collective.single()))
          .isInstanceOf(UserException.class);
      assertThat(open()).isEmpty();
    }
  }

  @Test
  void closesAdaptersThatWereOpenedBeforeABrokenOne() throws IOException {
    replace("adapters/sort_letters/adapter_model.safetensors", "q_proj", "q_prok");
    assertThatThrownBy(
            () ->
                LoadedModel.load(
                    LoadedModel.Spec.adapter(
                        folder.resolve("base"), folder.resolve("adapters"), "sort_letters")))
        .isInstanceOf(UserException.class);
    assertThat(open()).isEmpty();
    var folders =
        List.of(folder.resolve("adapters/count_vowels"), folder.resolve("adapters/sort_letters"));
    assertThatThrownBy(() -> TrainableModel.meteora(training(), folders, Collective.single()))
        .isInstanceOf(UserException.class);
    assertThat(open()).isEmpty();
  }

  @Test
  void freesTheMemoryOfAModelThatWasBuilt() throws IOException {
    var managers = new ArrayList<NDManager>();
    assertThatThrownBy(
            () ->
                ModelLoader.load(
                    folder.resolve("base"),
                    "cpu",
                    Optional.empty(),
                    org.meteora.parallel.Collective.single(),
                    loader -> {
                      var files = loader.own(SafetensorsFolder.open(folder.resolve("base")));
                      var base = new ModelLoader.Base(files, "", null);
                      var llama =
                          loader.build(
                              base,
                              builder -> (layer, module) -> null,
                              MemoryNeed.NONE,
                              MemoryNeed.NONE,
                              Flags.AUTO,
                              0);
                      managers.add(llama.manager());
                      throw new IllegalStateException("after building");
                    }))
        .hasMessage("after building");
    assertThat(managers).hasSize(1).noneMatch(NDManager::isOpen);
    assertThat(open()).isEmpty();
  }

  private boolean builds(MemoryNeed more, MemoryNeed wanted) {
    return ModelLoader.load(
        folder.resolve("base"),
        "cpu",
        Optional.empty(),
        org.meteora.parallel.Collective.single(),
        loader -> {
          try (loader) {
            var files = loader.own(SafetensorsFolder.open(folder.resolve("base")));
            var base = new ModelLoader.Base(files, "", null);
            return loader
                .build(base, builder -> (layer, module) -> null, more, wanted, Flags.AUTO, 0)
                .manager()
                .isOpen();
          }
        });
  }

  /** What cannot be is refused before anything is read; what may be asked for is a warning. */
  @Test
  void aModelThatDoesNotFitIsOneLine() throws IOException {
    var huge = MemoryNeed.NONE.and("adapters", 1L << 60);
    assertThatThrownBy(() -> builds(huge, MemoryNeed.NONE))
        .isInstanceOf(UserException.class)
        .hasMessageMatching(
            "this machine has too little memory: [\\d,]+ MiB are needed \\(weights 1 MiB, adapters"
                + " 1,099,511,627,777 MiB\\), [\\d,]+ MiB are free; --dtype bf16 needs half of"
                + " it");
    assertThat(open()).isEmpty();
    assertThat(builds(MemoryNeed.NONE, huge)).isTrue();
    assertThat(open()).isEmpty();
  }

  @Test
  void closesTheRestWhereClosingFails() {
    var closed = new ArrayList<Integer>();
    assertThatThrownBy(
            () ->
                ModelLoader.<Object>load(
                    folder.resolve("base"),
                    "cpu",
                    Optional.empty(),
                    org.meteora.parallel.Collective.single(),
                    loader -> {
                      for (int i = 0; i < 3; i++) {
                        int number = i;
                        AutoCloseable each =
                            () -> {
                              closed.add(number);
                              if (number == 1) {
                                throw new IOException("cannot be closed");
                              }
                            };
                        loader.own(each);
                      }
                      throw new UserException("a step failed");
                    }))
        .isInstanceOf(UserException.class)
        .hasMessage("a step failed")
        .satisfies(e -> assertThat(e.getSuppressed()).hasSize(1));
    assertThat(closed).containsExactly(2, 1, 0);
  }
}
