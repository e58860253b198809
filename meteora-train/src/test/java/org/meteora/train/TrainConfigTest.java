package org.meteora.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.meteora.UserException;

class TrainConfigTest {
  @Test
  void defaultsAreThePapers() {
    var config = TrainConfig.meteora();
    assertThat(config.batchSize()).isEqualTo(4);
    assertThat(config.accumulation()).isEqualTo(2);
    assertThat(config.learningRate()).isEqualTo(5e-4);
    assertThat(config.warmupRatio()).isEqualTo(0.005);
    assertThat(config.weightDecay()).isEqualTo(0.01);
    assertThat(config.maxGradNorm()).isEqualTo(0.3);
    assertThat(config.steps(10, 1)).isEqualTo(15_000);
    assertThat(config.maxSeqLen()).isEqualTo(4096);
    assertThat(config.gradientCheckpointing()).isTrue();
    assertThat(config.seed()).isEqualTo(42);
    assertThat(config.evalRatio()).isEqualTo(0.1);
    assertThat(config.saveSteps()).isEqualTo(3000);
    assertThat(config.gateLossWeight()).isEqualTo(50);
    assertThat(config.dropout()).isEqualTo(0.1);
    assertThat(config.responseOnly()).isFalse();
    var lora = TrainConfig.lora(Map.of(), Map.of());
    assertThat(lora.lora().rank()).isEqualTo(8);
    assertThat(lora.lora().alpha()).isEqualTo(16);
    assertThat(lora.lora().targetModules()).hasSize(7);
    assertThat(lora.responseOnly()).isTrue();
    assertThat(lora.steps(100, 1)).isEqualTo(150);
  }

  @Test
  void optionsWinOverTheSection() {
    Map<String, Object> section =
        Map.of("batch_size", 8, "max_steps", 100, "lora", Map.of("r", 4, "learning_rate", 1e-3));
    var config = TrainConfig.meteora(section, Map.of("batch_size", 2, "epochs", 1.5));
    assertThat(config.batchSize()).isEqualTo(2);
    assertThat(config.steps(40, 1)).isEqualTo(30);
    var lora = TrainConfig.lora(section, Map.of());
    assertThat(lora.batchSize()).isEqualTo(8);
    assertThat(lora.lora().rank()).isEqualTo(4);
    assertThat(lora.learningRate()).isEqualTo(1e-3);
    assertThat(lora.steps(5, 1)).isEqualTo(100);
  }

  @Test
  void mistakesNameTheKey() {
    assertThatThrownBy(() -> TrainConfig.meteora(Map.of("learning_rte", 1), Map.of()))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("learning_rte")
        .hasMessageContaining("did you mean \"learning_rate\"");
    assertThatThrownBy(() -> TrainConfig.meteora(Map.of("lora", Map.of("alfa", 1)), Map.of()))
        .hasMessageContaining("did you mean \"alpha\"");
    assertThatThrownBy(() -> TrainConfig.meteora(Map.of("batch_size", "many"), Map.of()))
        .hasMessageContaining("batch_size must be a whole number, it is \"many\"");
    assertThatThrownBy(() -> TrainConfig.meteora(Map.of("batch_size", 0), Map.of()))
        .hasMessageContaining("at least 1");
    assertThatThrownBy(() -> TrainConfig.meteora(Map.of("dtype", "f16"), Map.of()))
        .hasMessageContaining("f32");
    assertThatThrownBy(() -> TrainConfig.meteora(Map.of("max_steps", 5, "epochs", 1), Map.of()))
        .hasMessageContaining("not both");
    assertThatThrownBy(() -> TrainConfig.lora(Map.of(), Map.of("target_modules", List.of("q_prj"))))
        .hasMessageContaining("did you mean \"q_proj\"");
  }

  @Test
  void everySettingThatValuesDependOnIsInTheIdentity() {
    assertThat(TrainConfig.meteora().identity())
        .containsEntry("routing_top_k", "2")
        .containsEntry("gate_loss_weight", "50.0")
        .containsEntry("max_seq_len", "4096")
        .doesNotContainKeys("r", "response_only", "max_steps", "save_steps", "eval_steps");
    assertThat(TrainConfig.lora(Map.of(), Map.of("layers_to_transform", "3,1")).identity())
        .containsEntry("r", "8")
        .containsEntry("alpha", "16.0")
        .containsEntry("use_rslora", "false")
        .containsEntry("layers_to_transform", "[1, 3]")
        .containsEntry(
            "target_modules", "[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]")
        .containsEntry("response_only", "true")
        .containsEntry("append_eos", "false")
        .doesNotContainKeys("gate_loss_weight", "routing_top_k", "train", "epochs");
  }
}
