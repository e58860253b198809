package org.meteora.parallel;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.List;
import org.junit.jupiter.api.Test;
import org.meteora.UserException;

class LauncherTest {
  @Test
  void theProcessesAreStartedWithoutTheOption() {
    assertThat(
            Launcher.withoutOption(
                List.of("java", "-cp", "x", "Main", "train", "--processes", "4", "--tasks", "a")))
        .containsExactly("java", "-cp", "x", "Main", "train", "--tasks", "a");
    assertThat(Launcher.withoutOption(List.of("java", "Main", "eval", "--processes=2")))
        .containsExactly("java", "Main", "eval");
  }

  @Test
  void moreProcessesThanGpusAreRefused() {
    Processes.requireGpus(2, 2);
    assertThatThrownBy(() -> Processes.requireGpus(3, 2))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("more processes than GPUs: this machine has 2 GPUs");
    var launch =
        Launch.of(java.util.Map.of("OMPI_COMM_WORLD_RANK", "1", "OMPI_COMM_WORLD_SIZE", "2"));
    assertThatThrownBy(() -> Processes.device(launch, "cuda:1"))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("--device cuda:1 is one device");
    assertThat(Processes.device(launch, "cpu")).isEqualTo("cpu");
  }
}
