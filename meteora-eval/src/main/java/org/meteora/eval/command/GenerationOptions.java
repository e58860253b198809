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

  public TokenChoice given() {
    return new TokenChoice(
        greedy ? Optional.of(true) : Optional.empty(),
        Optional.ofNullable(temperature),
        Optional.ofNullable(topP),
        Optional.ofNullable(topK),
        Optional.of(noRepeatNgramSize),
        seed.value());
  }

  /**
   * Checks what can be checked before a model is loaded.
   *
   * @throws UserException when a value is out of range, options contradict each other, or sampling
   *     is asked for without a seed
   */
  public void check() {
    given().check(name -> "--" + name.replace('_', '-'));
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
      given().requireSeedOrGreedy();
    }
  }

  /**
   * The model's settings with the options over them.
   *
   * @throws UserException as {@link #check}, and when the model's own settings sample and there is
   *     neither a seed nor {@code --greedy}
   */
  public GenerationConfig apply(GenerationConfig model) {
    check();
    return given().over(model);
  }
}
