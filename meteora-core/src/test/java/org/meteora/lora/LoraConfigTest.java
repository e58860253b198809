package org.meteora.lora;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import org.junit.jupiter.api.Assertions;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.meteora.UserException;

/** Every key of PEFT 0.21's LoraConfig: honoured, without effect, or refused by its name. */
class LoraConfigTest {
  private static final String Q = "model.layers.1.self_attn.q_proj";

  @TempDir Path folder;

  /** A plain configuration with one more key, or another value of a key. */
  private LoraConfig read(String key, String value) throws IOException {
    var keys = new java.util.LinkedHashMap<String, String>();
    keys.put("peft_type", "\"LORA\"");
    keys.put("r", "8");
    keys.put("lora_alpha", "16");
    keys.put("target_modules", "[\"q_proj\", \"up_proj\"]");
    keys.put(key, value);
    var text = new StringBuilder();
    keys.forEach((k, v) -> text.append(text.isEmpty() ? "{" : ",").append("\"" + k + "\":" + v));
    Files.writeString(folder.resolve("adapter_config.json"), text + "}");
    return LoraConfig.read(folder);
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "init_lora_weights|\"pissa\"",
        "init_lora_weights|\"pissa_niter_16\"",
        "init_lora_weights|\"olora\"",
        "init_lora_weights|\"OLoRA\"",
        "init_lora_weights|\"corda\"",
        "init_lora_weights|\"loftq\"",
        "init_lora_weights|\"lora_ga\"",
        "init_lora_weights|\"something new\"",
        "init_lora_weights|7",
        "alora_invocation_tokens|[330, 301, 62]",
        "alora_invocation_tokens|[0]",
        "use_dora|true",
        "use_dora|\"false\"",
        "use_qalora|true",
        "lora_bias|true",
        "bias|\"all\"",
        "bias|\"lora_only\"",
        "layer_replication|[[0, 1], [0, 2]]",
        "trainable_token_indices|[3]",
        "trainable_token_indices|{\"embed_tokens\": [3]}",
        "target_parameters|[\"mlp.experts.gate_up_proj\"]",
        "megatron_config|{\"a\": 1}",
        "monteclora_config|{\"num_samples\": 2}",
        "use_bdlora|{\"nblocks\": 2}",
        "arrow_config|{\"top_k\": 2}",
        "kasa_config|{\"beta\": 0.1}",
        "layers_pattern|[\"h\"]",
        "peft_type|\"ADALORA\"",
        "peft_type|\"XLORA\"",
        "use_rslora|\"yes\"",
        "a_key_of_tomorrow|true",
        "a_key_of_tomorrow|0.5",
        "a_key_of_tomorrow|{\"on\": true}",
        "r|0",
        "r|-8",
        "r|1e9",
        "r|8.5",
        "r|\"8\"",
        "r|null",
        "lora_alpha|0",
        "lora_alpha|-16",
        "lora_alpha|1e400",
        "lora_alpha|1e39",
        "lora_alpha|1e-400",
        "lora_alpha|\"16\"",
        "lora_alpha|null",
        "lora_alpha|true",
        "lora_dropout|2",
        "lora_dropout|\"much\"",
        "alpha_pattern|{\"q_proj\": \"sixteen\"}",
        "alpha_pattern|{\"q_proj\": 0}",
        "alpha_pattern|{\"q_proj\": -2}",
        "alpha_pattern|{\"q_proj\": 1e400}",
        "alpha_pattern|{\"q_proj\": null}",
        "alpha_pattern|{\"(?!v)._proj\": 4}",
        "alpha_pattern|{\"(unclosed\": 4}",
        "alpha_pattern|[4]",
        "rank_pattern|{\"q_proj\": 0}",
        "rank_pattern|{\"q_proj\": \"8\"}",
        "rank_pattern|{\"q_proj\": 1.5}",
        "rank_pattern|\"q_proj\"",
        "target_modules|[1, 2]",
        "target_modules|{\"q_proj\": 1}",
        "target_modules|7",
        "exclude_modules|[null]",
        "layers_to_transform|[\"0\"]",
        "layers_to_transform|-1"
      })
  void whatChangesTheAdapterAndIsNotDoneHereIsRefusedByName(String key, String value) {
    assertThatThrownBy(() -> read(key, value))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("adapter_config.json")
        .hasMessageContaining(key);
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "init_lora_weights|true",
        "init_lora_weights|false",
        "init_lora_weights|null",
        "init_lora_weights|\"gaussian\"",
        "init_lora_weights|\"eva\"",
        "init_lora_weights|\"orthogonal\"",
        "init_lora_weights|\"mica\"",
        "fan_in_fan_out|true",
        "task_type|\"CAUSAL_LM\"",
        "auto_mapping|{\"base_model_class\": \"LlamaForCausalLM\", \"unsloth_fixed\": true}",
        "peft_version|\"0.21.0\"",
        "revision|\"main\"",
        "inference_mode|false",
        "loftq_config|{\"loftq_bits\": 4}",
        "eva_config|{\"rho\": 2.0}",
        "corda_config|{\"corda_method\": \"ipm\"}",
        "lora_ga_config|{\"direction\": \"ArB2r\"}",
        "velora_config|{\"rank\": 1}",
        "megatron_core|\"megatron.core\"",
        "qalora_group_size|32",
        "runtime_config|{\"ephemeral_gpu_offload\": true}",
        "ensure_weight_tying|true",
        "alora_invocation_tokens|null",
        "a_key_of_tomorrow|null",
        "a_key_of_tomorrow|false",
        "a_key_of_tomorrow|[]",
        "a_key_of_tomorrow|{}",
        "a_key_of_tomorrow|\"\"",
        "layers_pattern|\"layers\"",
        "layers_pattern|null",
        "modules_to_save|[]"
      })
  void whatChangesNothingIsRead(String key, String value) throws IOException {
    var config = read(key, value);
    assertThat(config.rank()).isEqualTo(8);
    assertThat(config.scaleOf(Q, 8)).isEqualTo(2);
    assertThat(config.adapts(Q)).contains(true);
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "target_modules|[\"q_proj\"]|true",
        "target_modules|[\"model.layers.1.self_attn.q_proj\"]|true",
        "target_modules|[\"model.layers.0.self_attn.q_proj\"]|false",
        "target_modules|[\"proj\"]|false",
        "target_modules|\"all-linear\"|true",
        "target_modules|\".*\\\\.q_proj\"|true",
        "target_modules|\"q_proj\"|false",
        "target_modules|\"model\\\\.layers\\\\.(?P<number>\\\\d+)\\\\.self_attn\\\\.[qk]_proj\"|true",
        "exclude_modules|[\"q_proj\"]|false",
        "exclude_modules|[\"layers.1.self_attn.q_proj\"]|false",
        "exclude_modules|[\"v_proj\"]|true",
        "exclude_modules|\".*layers\\\\.1\\\\..*\"|false",
        "layers_to_transform|[0, 1]|true",
        "layers_to_transform|0|false",
        "target_modules|\".*.*.*.*.*.*.*.*.*.*.*.*.*.*X\"|false"
      })
  void modulesAreChosenAsPeftDoes(String key, String value, boolean adapts) throws IOException {
    assertThat(read(key, value).adapts(Q)).contains(adapts);
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "\"(?!lm_head).*_proj\"",
        "\".*(?<=q)_proj\"",
        "\"(?P<a>.)_(?P=a)\"",
        "\"((((\"",
        "\"(a{1000}){1000}\""
      })
  void ofAPatternThatIsNotUnderstoodTheTensorsTell(String pattern) throws IOException {
    assertThat(read("target_modules", pattern).adapts(Q)).isEmpty();
    assertThat(read("rank_pattern", "{" + pattern + ": 4}").rankOf(Q)).isEmpty();
  }

  /** Expected values are those of PEFT 0.21's get_pattern_key. */
  @Test
  void theFirstPatternForTheEndOfThePathDecides() throws IOException {
    var config =
        read("alpha_pattern", "{\"layers.0.*\": 4, \"q_proj\": 32, \"self_attn.q_proj\": 2}");
    assertThat(config.scaleOf(Q, 8)).isEqualTo(4);
    assertThat(config.scaleOf("model.layers.0.self_attn.q_proj", 8)).isEqualTo(0.5);
    assertThat(config.scaleOf("model.layers.1.mlp.up_proj", 8)).isEqualTo(2);
    var ranks =
        read("rank_pattern", "{\"^q_proj\": 2, \"^model.layers.1.*q_proj\": 5, \"proj\": 3}");
    assertThat(ranks.rankOf(Q)).hasValue(5);
    assertThat(ranks.rankOf("model.layers.1.mlp.up_proj")).hasValue(8);
  }

  @Test
  void noPatternTakesLong() {
    var stars = ".*".repeat(40) + "X";
    var alternatives = "(a|a)*".repeat(30) + "b";
    var nested = "(".repeat(90) + "q" + ")*".repeat(90);
    var deep = "(".repeat(5000) + ")".repeat(5000);
    var counted = "((((.{30}){30}){30}){30}){30}";
    Assertions.assertTimeoutPreemptively(
        Duration.ofSeconds(5),
        () -> {
          for (var pattern : new String[] {stars, alternatives, nested, deep, counted}) {
            read("target_modules", "\"" + pattern + "\"").adapts(Q);
            read("rank_pattern", "{\"" + pattern + "\": 4}").rankOf(Q);
          }
        });
  }
}
