package org.meteora.data.hub;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.UserException;
import org.meteora.data.command.DownloadCommand;

class SettingsAndConfigTest {
  @TempDir Path folder;

  @Test
  void theEnvironmentIsReadAsPythonUsersKnowIt() throws Exception {
    assertThat(HubSettings.fromEnvironment(Map.of(), folder).endpoint())
        .hasToString("https://huggingface.co");
    assertThat(HubSettings.fromEnvironment(Map.of(), folder).token()).isEmpty();
    var home = Files.createDirectories(folder.resolve(".cache/huggingface"));
    Files.writeString(home.resolve("token"), "from-file\n");
    assertThat(HubSettings.fromEnvironment(Map.of(), folder).token()).contains("from-file");
    assertThat(HubSettings.fromEnvironment(Map.of("HF_TOKEN", " own "), folder).token())
        .contains("own");
    var other = Files.createDirectories(folder.resolve("other"));
    Files.writeString(other.resolve("token"), "elsewhere");
    var settings =
        HubSettings.fromEnvironment(
            Map.of("HF_HOME", "~/other", "HF_ENDPOINT", "http://mirror:80/x/"), folder);
    assertThat(settings.token()).contains("elsewhere");
    assertThat(settings.cache()).isEqualTo(other.resolve("hub"));
    assertThat(settings.endpoint()).hasToString("http://mirror:80/x");
    assertThat(settings.toString()).doesNotContain("elsewhere");
    for (var bad :
        List.of(
            Map.of("HF_ENDPOINT", "ftp://x"),
            Map.of("HF_ENDPOINT", "not an address"),
            Map.of("HF_TOKEN", "a\nb"),
            Map.of("HF_HUB_OFFLINE", "1"))) {
      assertThatThrownBy(() -> HubSettings.fromEnvironment(bad, folder))
          .isInstanceOf(UserException.class);
    }
  }

  @Test
  void theConfigLinesOfPublishedCheckpointsAreFoundAndSet() throws Exception {
    var files =
        List.of(
            Path.of("README.md"),
            Path.of("llama3_8b_peft/alpaca/adapter_config.json"),
            Path.of("llama3_8b_peft/gsm8k/adapter_config.json"),
            Path.of("llama3_8b_meteora/top_1/model.safetensors"),
            Path.of("llama3_8b_meteora/top_2/adapter_config.json"),
            Path.of("llama3_8b_meteora/top_2/model.safetensors"));
    var lines = ConfigLines.of(Path.of("/c"), files, Optional.of(Path.of("/base's")));
    assertThat(lines)
        .containsExactly(
            Map.entry("base_model_path", Path.of("/base's")),
            Map.entry("meteora_ckpt_path", Path.of("/c/llama3_8b_meteora/top_2")),
            Map.entry("adapter_dir", Path.of("/c/llama3_8b_peft")));
    var config = folder.resolve("config.yaml");
    Files.writeString(
        config, "# mine\nadapter_dir: old # old\ntrain:\n  adapter_dir: keep\ntarget_dir: d");
    ConfigLines.write(config, lines);
    assertThat(config)
        .hasContent(
            """
            # mine
            adapter_dir: '/c/llama3_8b_peft'
            train:
              adapter_dir: keep
            target_dir: d
            base_model_path: '/base''s'
            meteora_ckpt_path: '/c/llama3_8b_meteora/top_2'
            """);
    Files.writeString(config, "{adapter_dir: x}\n");
    assertThatThrownBy(() -> ConfigLines.write(config, lines)).isInstanceOf(UserException.class);
    assertThat(config).hasContent("{adapter_dir: x}\n");
  }

  @Test
  void everyShortNameIsInTheHelpWithItsRepositoryAndFolder() {
    var help = new picocli.CommandLine(new DownloadCommand()).getUsageMessage();
    for (var known : KnownRepository.ALL) {
      assertThat(help).containsPattern(known.name() + " +" + known.id() + " +" + known.folder());
    }
  }
}
