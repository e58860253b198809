package org.meteora.eval.command;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalInt;
import org.junit.jupiter.api.Test;
import org.meteora.UserException;
import org.meteora.checkpoint.LoadedModel;
import org.meteora.data.config.MeteoraConfig;
import org.meteora.generate.GenerationConfig;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardMode;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;

class OptionsTest {
  private static final GenerationConfig GREEDY =
      GenerationConfig.greedy(List.of(2), 100).withNoRepeatNgramSize(30);
  private static final MeteoraConfig CONFIG =
      MeteoraConfig.parse(
          "base_model_path: base\nmeteora_ckpt_path: ckpt\nadapter_dir: adapters\n", "test");

  @Command
  private static final class Both {
    @Mixin ModelOptions model;
    @Mixin GenerationOptions generation;
  }

  private static Both parse(String... args) {
    var command = new Both();
    new CommandLine(command).parseArgs(args);
    return command;
  }

  private static GenerationConfig generation(GenerationConfig model, String... args) {
    return parse(args).generation.apply(model);
  }

  private static LoadedModel.Spec spec(String... args) {
    return parse(args).model.spec(CONFIG, 15);
  }

  @Test
  void theModelsOwnSettingsHold() {
    assertThat(generation(GREEDY).sample()).isFalse();
    var sampling = GREEDY.withSampling(0.6, 0.9, 40, 0);
    assertThat(generation(sampling, "--seed", "7")).isEqualTo(GREEDY.withSampling(0.6, 0.9, 40, 7));
    assertThat(generation(sampling, "--greedy").sample()).isFalse();
  }

  @Test
  void anySamplingOptionMeansSampling() {
    var chosen = generation(GREEDY, "--top-p", "0.5", "--seed", "1");
    assertThat(chosen).isEqualTo(GREEDY.withSampling(1, 0.5, 50, 1));
    var sampling = GREEDY.withSampling(0.6, 0.9, 40, 0);
    assertThat(generation(sampling, "--temperature", "2", "--top-k", "0", "--seed", "1"))
        .isEqualTo(GREEDY.withSampling(2, 0.9, 0, 1));
  }

  @Test
  void whatALineSaysOfTokensWinsOverTheOptions() {
    var sampling = GREEDY.withSampling(0.6, 0.9, 40, 0);
    var seed = parse("--seed=7").generation.given();
    var greedy = parse("--greedy", "--seed=7").generation.given();
    var no = choice(Optional.of(false), Optional.empty());
    assertThat(greedy.with(choice(Optional.empty(), Optional.empty())).over(sampling).sample())
        .isFalse();
    assertThat(greedy.with(no).over(sampling)).isEqualTo(GREEDY.withSampling(0.6, 0.9, 40, 7));
    assertThat(greedy.with(no).over(GREEDY)).isEqualTo(GREEDY);
    assertThat(greedy.with(choice(Optional.empty(), Optional.of(2.0))).over(sampling))
        .isEqualTo(GREEDY.withSampling(2, 0.9, 40, 7));
    assertThat(seed.with(choice(Optional.of(true), Optional.empty())).over(sampling).sample())
        .isFalse();
    refused(
        "\"greedy\" excludes",
        () ->
            seed.with(choice(Optional.of(true), Optional.of(2.0))).check(name -> '"' + name + '"'));
  }

  private static TokenChoice choice(Optional<Boolean> greedy, Optional<Double> temperature) {
    return new TokenChoice(
        greedy,
        temperature,
        Optional.empty(),
        Optional.empty(),
        Optional.empty(),
        Optional.empty());
  }

  @Test
  void samplingMistakesAreNamed() {
    refused("--seed", () -> generation(GREEDY, "--temperature", "0.5"));
    refused("--seed", () -> generation(GREEDY.withSampling(1, 1, 0, 0)));
    refused("--greedy", () -> generation(GREEDY, "--greedy", "--top-k", "5", "--seed", "1"));
    refused("--temperature", () -> generation(GREEDY, "--temperature", "0", "--seed", "1"));
    refused("--temperature", () -> generation(GREEDY, "--temperature", "NaN", "--seed", "1"));
    refused("--top-p", () -> generation(GREEDY, "--top-p", "1.5", "--seed", "1"));
    refused("--top-k", () -> generation(GREEDY, "--top-k", "-1", "--seed", "1"));
    refused("--no-repeat-ngram-size", () -> generation(GREEDY, "--no-repeat-ngram-size", "-1"));
    assertThat(generation(GREEDY, "--no-repeat-ngram-size", "0").noRepeatNgramSize()).isZero();
  }

  @Test
  void routing() {
    assertThat(spec().temperature()).contains(15.0);
    assertThat(spec().topK()).isEmpty();
    assertThat(spec().model()).isEqualTo("meteora");
    assertThat(spec().device()).isEqualTo("auto");
    var given = spec("--routing-temperature", "2.5", "--routing-top-k", "3", "--dtype", "BF16");
    assertThat(given.temperature()).contains(2.5);
    assertThat(given.topK()).contains(3);
    assertThat(given.dtype()).contains("bf16");
  }

  @Test
  void routingAndFlagsComeFromTheConfigToo() {
    var config =
        MeteoraConfig.parse(
            """
            base_model_path: base
            meteora_ckpt_path: ckpt
            routing_top_k: 3
            routing_temperature: 4
            moelinear_fwd_inner_loop_mode: all
            """,
            "c.yaml");
    var spec = parse().model.spec(config, 15);
    assertThat(spec.topK()).contains(3);
    assertThat(spec.temperature()).contains(4.0);
    assertThat(spec.flags())
        .isEqualTo(Flags.fromEnvironment(Map.of("MOELINEAR_FWD_INNER_LOOP_MODE", "all")));
    var over =
        parse(
            "--routing-top-k=1",
            "--routing-temperature=auto",
            "--moelinear-fwd-inner-loop-mode=parallel",
            "--moelinear-single-moe-lora=2");
    spec = over.model.spec(config, 15);
    assertThat(spec.topK()).contains(1);
    assertThat(spec.temperature()).contains(15.0);
    assertThat(spec.flags())
        .isEqualTo(
            new Flags(
                ForwardMode.PARALLEL,
                OptionalInt.of(2),
                Map.of(
                    "MOELINEAR_FWD_INNER_LOOP_MODE",
                    "parallel",
                    "MOELINEAR_SINGLE_MOE_LORA",
                    "2")));
    refused(
        "c.yaml: MOELINEAR_ACCELERATE_FWD_BACKEND=tritn",
        () -> MeteoraConfig.parse("moelinear_accelerate_fwd_backend: tritn\n", "c.yaml"));
    refused("routing_top_k", () -> MeteoraConfig.parse("routing_top_k: 0\n", "c.yaml"));
    refused("v1, v2", () -> spec("--moelinear-accelerate-fwd-backend-torch-version", "v3"));
  }

  @Test
  void modelMistakesAreNamed() {
    refused("--routing-top-k", () -> spec("--routing-top-k", "0"));
    refused("--routing-temperature", () -> spec("--routing-temperature", "warm"));
    refused("--routing-temperature", () -> spec("--routing-temperature", "-1"));
    var nothing = MeteoraConfig.DEFAULTS;
    refused("base_model_path", () -> parse().model.spec(nothing, 1));
    var base = MeteoraConfig.parse("base_model_path: base\n", "test");
    refused("meteora_ckpt_path", () -> parse().model.spec(base, 1));
    refused("adapter_dir", () -> parse("--model", "alpaca").model.spec(base, 1));
  }

  private static void refused(
      String named, org.assertj.core.api.ThrowableAssert.ThrowingCallable call) {
    assertThatThrownBy(call).isInstanceOf(UserException.class).hasMessageContaining(named);
  }
}
