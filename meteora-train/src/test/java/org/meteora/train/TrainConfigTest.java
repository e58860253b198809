package org.meteora.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.nio.file.Path;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import org.junit.jupiter.api.Test;
import org.meteora.UserException;
import org.meteora.data.config.MeteoraConfig;
import org.meteora.model.LlamaTraining.Recompute;

class TrainConfigTest {
  @Test
  void theRecipeOfThePaperIsTheOriginals() {
    var config = TrainConfig.meteora(Map.of("recipe", "paper"), Map.of());
    assertThat(config.batchSize()).isEqualTo(4);
    assertThat(config.accumulation()).isEqualTo(2);
    assertThat(config.learningRate()).isEqualTo(5e-4);
    assertThat(config.warmupRatio()).isEqualTo(0.005);
    assertThat(config.weightDecay()).isEqualTo(0.01);
    assertThat(config.maxGradNorm()).isEqualTo(0.3);
    assertThat(config.steps(10, 1)).isEqualTo(15_000);
    assertThat(config.maxSeqLen()).isEqualTo(4096);
    assertThat(config.recompute()).isEqualTo(Recompute.AUTO);
    assertThat(config.seed()).isEqualTo(42);
    assertThat(config.evalRatio()).isEqualTo(0.1);
    assertThat(config.saveSteps()).isEqualTo(3000);
    assertThat(config.gateLossWeight()).isEqualTo(50);
    assertThat(config.dropout()).isEqualTo(0.1);
    assertThat(config.responseOnly()).contains(false);
    assertThat(config.appendEos()).contains(false);
    assertThat(config.adapterLearningRate()).isEqualTo(5e-4);
    assertThat(config.adapterMaxGradNorm()).isEmpty();
    assertThat(config.trained()).isEqualTo(TrainConfig.Trained.ALL);
    assertThat(config.keepBest()).isFalse();
    var lora = TrainConfig.lora(Map.of(), Map.of());
    assertThat(lora.lora().rank()).isEqualTo(8);
    assertThat(lora.lora().alpha()).isEqualTo(16);
    assertThat(lora.lora().targetModules()).hasSize(7);
    assertThat(lora.responseOnly()).contains(true);
    assertThat(lora.steps(100, 1)).isEqualTo(150);
  }

  @Test
  void optionsWinOverTheSection() {
    Map<String, Object> section =
        Map.of("batch_size", 8, "max_steps", 100, "lora", Map.of("r", 4, "learning_rate", 1e-3));
    var config = TrainConfig.meteora(section, Map.of("batch_size", 2, "epochs", 1.5));
    assertThat(config.batchSize()).isEqualTo(2);
    assertThat(config.steps(40, 1)).isEqualTo(60);
    var lora = TrainConfig.lora(section, Map.of());
    assertThat(lora.batchSize()).isEqualTo(8);
    assertThat(lora.lora().rank()).isEqualTo(4);
    assertThat(lora.learningRate()).isEqualTo(1e-3);
    assertThat(lora.steps(5, 1)).isEqualTo(100);
  }

  /** What the adapters decide is read anew with all the rest: nothing else may change by that. */
  @Test
  void nothingButWhatWasOpenIsDecidedByTheAdapters() {
    var given = new HashMap<String, Object>();
    given.put("append_eos", true);
    given.put("response_only", false);
    given.put("epochs", "2.5");
    given.put("learning_rate", 3e-3);
    given.put("seed", -7);
    given.put("weight_decay", 0.2);
    given.put("device", "cpu");
    given.put("dtype", "f32");
    var ofLora = new HashMap<>(given);
    ofLora.put("r", 4);
    ofLora.put("target_modules", "q_proj,v_proj");
    ofLora.put("layers_to_transform", List.of(1, 2));
    given.put("tasks", List.of("a", "b"));
    for (var recipe : List.of("default", "paper")) {
      given.put("recipe", recipe);
      for (var train : List.of("auto", "gates", "all")) {
        given.put("train", train);
        var config = TrainConfig.meteora(Map.of(), given);
        assertThat(config.as(false, true)).isEqualTo(config);
      }
    }
    var lora = TrainConfig.lora(Map.of(), ofLora);
    assertThat(lora.as(false, true)).isEqualTo(lora);
    var flow = TrainConfig.loraFlow(Map.of(), Map.of());
    assertThat(flow.as(true, false)).isEqualTo(flow);
  }

  @Test
  void theFileOfThePapersSettingsIsTheRecipe() {
    var root = Path.of(System.getProperty("meteora.root", ".."));
    var section = MeteoraConfig.read(root.resolve("configs/paper.yaml")).train();
    var paper = TrainConfig.meteora(Map.of("recipe", "paper"), Map.of());
    assertThat(TrainConfig.meteora(section, Map.of())).isEqualTo(paper);
    var without = new LinkedHashMap<>(section);
    without.remove("recipe"); // every line counts by itself too, but for the one norm over both
    assertThat(TrainConfig.meteora(without, Map.of()).describe())
        .containsEntry("adapter_max_grad_norm", 1.0)
        .containsAllEntriesOf(
            paper.describe().entrySet().stream()
                .filter(entry -> !entry.getKey().equals("recipe"))
                .collect(Collectors.toMap(Map.Entry::getKey, Map.Entry::getValue)));
  }

  @Test
  void oneOptionOverridesTheRecipesAndNoMore() {
    var plain = TrainConfig.meteora(Map.of(), Map.of());
    var config =
        TrainConfig.meteora(
            Map.of("recipe", "paper"), Map.of("learning_rate", 1e-3, "keep", "best"));
    assertThat(config.learningRate()).isEqualTo(1e-3);
    assertThat(config.adapterLearningRate()).isEqualTo(1e-3); // the paper has one rate for both
    assertThat(config.maxGradNorm()).isEqualTo(0.3);
    assertThat(config.keepBest()).isTrue();
    assertThat(TrainConfig.meteora(Map.of("recipe", "paper"), Map.of("recipe", "default")))
        .isEqualTo(plain);
    assertThat(plain.keepBest()).isTrue();
    assertThat(plain.trained()).isEqualTo(TrainConfig.Trained.AUTO);
    assertThat(plain.steps(10, 1)).isEqualTo(600);
    assertThat(plain.responseOnly()).isEmpty(); // as the adapters
    assertThat(plain.as(true, false).responseOnly()).contains(false);
    assertThat(plain.as(true, false).appendEos()).contains(true);
    assertThat(TrainConfig.lora(Map.of("recipe", "default"), Map.of()).learningRate())
        .isEqualTo(5e-4);
    assertThatThrownBy(() -> TrainConfig.meteora(Map.of("recipe", "papers"), Map.of()))
        .hasMessageContaining("recipe must be one of default, paper, it is \"papers\"");
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
    assertThat(TrainConfig.meteora(Map.of(), Map.of()).identity())
        .containsEntry("routing_top_k", "2")
        .containsEntry("recipe", "default")
        .containsEntry("train", "auto")
        .containsEntry("adapter_learning_rate", "0.002")
        .containsEntry("adapter_max_grad_norm", "1.0")
        .containsEntry("gate_loss_weight", "10.0")
        .containsEntry("max_seq_len", "4096")
        .doesNotContainKeys("r", "max_steps", "save_steps", "eval_steps", "keep");
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
