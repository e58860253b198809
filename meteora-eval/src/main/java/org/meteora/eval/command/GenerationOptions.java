package org.meteora.eval.command;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Optional;
import org.meteora.UserException;
import org.meteora.data.config.SeedOption;
import org.meteora.generate.GenerationConfig;
import org.meteora.io.Jsonl;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** How tokens are chosen: the model's own settings, unless an option says otherwise. */
public final class GenerationOptions {
  /** Hugging Face's, where neither the model nor the user says otherwise. */
  private static final int DEFAULT_TOP_K = 50;

  @Option(names = "--greedy", description = "Always the most likely token.")
  private boolean greedy;

  @Option(
      names = "--temperature",
      paramLabel = "T",
      description = "Sample, with logits divided by T (above 0). Needs --seed.")
  private Double temperature;

  @Option(
      names = "--top-p",
      paramLabel = "P",
      description = "Sample from the smallest set of tokens with this much probability.")
  private Double topP;

  @Option(
      names = "--top-k",
      paramLabel = "K",
      description = "Sample from the K most likely tokens; 0: from all.")
  private Integer topK;

  @Option(
      names = "--no-repeat-ngram-size",
      paramLabel = "N",
      defaultValue = "30",
      description = "No N tokens in a row occur twice; 0: no such rule (default: 30).")
  private int noRepeatNgramSize;

  @Mixin private SeedOption seed;

  /**
   * Checks what can be checked before a model is loaded.
   *
   * @throws UserException when a value is out of range, options contradict each other, or sampling
   *     is asked for without a seed
   */
  public void check() {
    if (noRepeatNgramSize < 0) {
      throw new UserException(
          "--no-repeat-ngram-size must be at least 0, not " + noRepeatNgramSize);
    }
    if (temperature != null && !(temperature > 0 && temperature < Double.POSITIVE_INFINITY)) {
      throw new UserException("--temperature must be above 0, not " + temperature);
    }
    if (topP != null && !(topP > 0 && topP <= 1)) {
      throw new UserException("--top-p must be above 0 and at most 1, not " + topP);
    }
    if (topK != null && topK < 0) {
      throw new UserException("--top-k must be at least 0, not " + topK);
    }
    if (greedy && sampling()) {
      throw new UserException(
          "--greedy excludes the sampling options --temperature, --top-p and --top-k");
    }
    if (sampling() && seed.value().isEmpty()) {
      throw new UserException("sampling needs --seed, so that it can be repeated");
    }
  }

  /**
   * As {@link #check()}, and whether the model's own settings can be followed.
   *
   * @param modelFolder with its {@code generation_config.json}, if it has one
   * @throws UserException as {@link #apply}
   */
  public void check(Path modelFolder) {
    check();
    var file = modelFolder.resolve("generation_config.json");
    if (Files.exists(file) && Jsonl.readFile(file).path("do_sample").asBoolean(false)) {
      requireSeedOrGreedy();
    }
  }

  private void requireSeedOrGreedy() {
    if (seed.value().isEmpty() && !greedy) {
      throw new UserException(
          "the model's generation_config.json asks for sampling, which needs --seed; or choose"
              + " --greedy");
    }
  }

  private boolean sampling() {
    return temperature != null || topP != null || topK != null;
  }

  /**
   * The model's settings with the options over them.
   *
   * @throws UserException as {@link #check}, and when the model's own settings sample and there is
   *     neither a seed nor {@code --greedy}
   */
  public GenerationConfig apply(GenerationConfig model) {
    check();
    return choose(model).withNoRepeatNgramSize(noRepeatNgramSize);
  }

  private GenerationConfig choose(GenerationConfig model) {
    if (greedy || !model.sample() && !sampling()) {
      return model.withGreedy();
    }
    requireSeedOrGreedy();
    return model.withSampling(
        Optional.ofNullable(temperature).orElse(model.temperature()),
        Optional.ofNullable(topP).orElse(model.topP()),
        Optional.ofNullable(topK).orElse(model.sample() ? model.topK() : DEFAULT_TOP_K),
        seed.value().orElseThrow());
  }
}
