package org.meteora.data.config;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.nio.file.Path;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import org.junit.jupiter.api.Test;
import org.meteora.UserException;

class MeteoraConfigTest {
  @Test
  void readsKeysAndDefaults() {
    var config =
        MeteoraConfig.parse("base_model_path: models/llama\ntrain:\n  lr: 0.1\n", "config.yaml");
    assertThat(config.baseModelPath()).contains(Path.of("models/llama"));
    assertThat(config.targetDir()).isEqualTo(Path.of("datasets"));
    assertThat(config.train()).containsEntry("lr", 0.1);
    assertThat(MeteoraConfig.parse("", "x")).isEqualTo(MeteoraConfig.DEFAULTS);
  }

  @Test
  void mistakesAreNamed() {
    assertThatThrownBy(() -> MeteoraConfig.parse("adaptor_dir: x", "c.yaml"))
        .isInstanceOf(UserException.class)
        .hasMessage("c.yaml: unknown key \"adaptor_dir\"; did you mean \"adapter_dir\"?");
    assertThatThrownBy(() -> MeteoraConfig.parse("- a\n- b", "c.yaml"))
        .hasMessageContaining("a map of keys");
    assertThatThrownBy(() -> MeteoraConfig.parse("a: [", "c.yaml"))
        .isInstanceOf(UserException.class)
        .hasMessageStartingWith("c.yaml:");
    assertThatThrownBy(() -> MeteoraConfig.parse("target_dir: [a]", "c.yaml"))
        .hasMessageContaining("must be a path");
    assertThatThrownBy(() -> MeteoraConfig.DEFAULTS.requireAdapterDir())
        .hasMessageContaining("--adapter-dir");
  }

  @Property(tries = 500)
  void anyTextIsAConfigOrOneLineOfError(@ForAll String text) {
    try {
      assertThat(MeteoraConfig.parse(text, "c.yaml")).isNotNull();
    } catch (UserException e) {
      assertThat(e.getMessage()).doesNotContain("\n").startsWith("c.yaml");
    }
  }
}
