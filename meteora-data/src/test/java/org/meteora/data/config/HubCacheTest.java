package org.meteora.data.config;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.UserException;

class HubCacheTest {
  private static final Path MODEL = Path.of("HuggingFaceTB/SmolLM2-135M-Instruct");

  @TempDir Path home;

  private Path snapshot(Path cache, String commit) throws IOException {
    var repository = cache.resolve("models--HuggingFaceTB--SmolLM2-135M-Instruct");
    Files.createDirectories(repository.resolve("refs"));
    Files.writeString(repository.resolve("refs/main"), commit);
    var snapshot = Files.createDirectories(repository.resolve("snapshots").resolve(commit));
    Files.writeString(snapshot.resolve("config.json"), "{}");
    return snapshot;
  }

  @Test
  void aRepositorysNameIsItsSnapshotInTheCache() throws IOException {
    var usual = snapshot(home.resolve(".cache/huggingface/hub"), "abc123");
    assertThat(HubCache.resolve(MODEL, Map.of(), home)).isEqualTo(usual);
    var ofHome = snapshot(home.resolve("hf/hub"), "def456");
    assertThat(HubCache.resolve(MODEL, Map.of("HF_HOME", "~/hf"), home)).isEqualTo(ofHome);
    var own = snapshot(home.resolve("own"), "0123");
    assertThat(
            HubCache.resolve(
                MODEL,
                Map.of("HF_HUB_CACHE", home.resolve("own").toString(), "HF_HOME", "/x"),
                home))
        .isEqualTo(own);
    var xdg = snapshot(home.resolve("xdg/huggingface/hub"), "4567");
    assertThat(HubCache.resolve(MODEL, Map.of("XDG_CACHE_HOME", home.resolve("xdg") + ""), home))
        .isEqualTo(xdg);
  }

  @Test
  void pathsAreLeftAlone() {
    for (var path : new String[] {"models", "./a/b", "/a/b", "a/b/c", "../a", "-a/b", "a b/c"}) {
      assertThat(HubCache.resolve(Path.of(path), Map.of(), home)).isEqualTo(Path.of(path));
    }
  }

  @Test
  void whatIsNotThereSaysHowToFetchIt() throws IOException {
    assertThatThrownBy(() -> HubCache.resolve(MODEL, Map.of(), home))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("meteora download " + MODEL + " --to models/SmolLM2-135M-Instruct");
    snapshot(home.resolve(".cache/huggingface/hub"), "abc");
    Files.writeString(
        home.resolve(
            ".cache/huggingface/hub/models--HuggingFaceTB--SmolLM2-135M-Instruct/refs/main"),
        "../../../etc");
    assertThatThrownBy(() -> HubCache.resolve(MODEL, Map.of(), home))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("refs/main");
  }

  /** What "meteora init" writes until a model is there. */
  @Test
  void theFolderOfDownloadsIsNobodysNameOnTheHub() {
    assertThatThrownBy(() -> HubCache.resolve(Path.of("models/Meta-Llama-3-8B"), Map.of(), home))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("no folder models/Meta-Llama-3-8B")
        .hasMessageContaining("meteora download llama3-8b")
        .hasMessageNotContaining("download models/");
  }
}
