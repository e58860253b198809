package org.meteora.eval.command;

import java.util.Optional;
import java.util.function.Predicate;
import java.util.function.UnaryOperator;
import org.meteora.UserException;
import org.meteora.generate.GenerationConfig;

/**
 * How tokens are chosen, as far as somebody has said.
 *
 * @param greedy true: always the most likely token; false: as the model's settings say
 * @param temperature divides the logits, above 0
 * @param topP keeps the smallest set of tokens with this much probability
 * @param topK keeps this many tokens; 0 keeps all
 * @param noRepeatNgramSize no n-gram of this size occurs twice; 0 allows all
 */
public record TokenChoice(
    Optional<Boolean> greedy,
    Optional<Double> temperature,
    Optional<Double> topP,
    Optional<Integer> topK,
    Optional<Integer> noRepeatNgramSize,
    Optional<Long> seed) {
  /** Hugging Face's, where neither the model nor the user says otherwise. */
  private static final int MOST_LIKELY = 50;

  private boolean samples() {
    return temperature.isPresent() || topP.isPresent() || topK.isPresent();
  }

  private boolean isGreedy() {
    return greedy.orElse(false);
  }

  /** What another says, and this where it says nothing. */
  public TokenChoice with(TokenChoice over) {
    return new TokenChoice(
        over.samples() ? over.greedy : over.greedy.or(() -> greedy),
        over.isGreedy() ? over.temperature : over.temperature.or(() -> temperature),
        over.isGreedy() ? over.topP : over.topP.or(() -> topP),
        over.isGreedy() ? over.topK : over.topK.or(() -> topK),
        over.noRepeatNgramSize.or(() -> noRepeatNgramSize),
        over.seed.or(() -> seed));
  }

  /**
   * @param called what a setting such as {@code top_p} is called where it is said
   * @throws UserException when a value is out of range, settings contradict each other, or sampling
   *     is asked for without a seed
   */
  public void check(UnaryOperator<String> called) {
    require(called, "no_repeat_ngram_size", noRepeatNgramSize, n -> n >= 0, "at least 0");
    require(called, "temperature", temperature, t -> t > 0 && Double.isFinite(t), "above 0");
    require(called, "top_p", topP, p -> p > 0 && p <= 1, "above 0 and at most 1");
    require(called, "top_k", topK, k -> k >= 0, "at least 0");
    if (isGreedy() && samples()) {
      throw new UserException(
          "%s excludes the sampling settings %s, %s and %s",
          called.apply("greedy"),
          called.apply("temperature"),
          called.apply("top_p"),
          called.apply("top_k"));
    }
    if (samples() && seed.isEmpty()) {
      throw new UserException(
          "sampling needs " + called.apply("seed") + ", so that it can be repeated");
    }
  }

  private static <T> void require(
      UnaryOperator<String> called,
      String name,
      Optional<T> value,
      Predicate<T> fits,
      String right) {
    if (value.isPresent() && !fits.test(value.get())) {
      throw new UserException(called.apply(name) + " must be " + right + ", not " + value.get());
    }
  }

  /** A model that samples by itself needs a seed, or to be told not to. */
  void requireSeedOrGreedy() {
    if (seed.isEmpty() && !isGreedy()) {
      throw new UserException(
          "the model's generation_config.json asks for sampling, which needs --seed; or choose"
              + " --greedy");
    }
  }

  /**
   * The model's settings with this over them.
   *
   * @throws UserException when the model's own settings sample and there is neither a seed nor
   *     greedy choice
   */
  public GenerationConfig over(GenerationConfig model) {
    var chosen = noRepeatNgramSize.map(model::withNoRepeatNgramSize).orElse(model);
    if (isGreedy() || !model.sample() && !samples()) {
      return chosen.withGreedy();
    }
    requireSeedOrGreedy();
    return chosen.withSampling(
        temperature.orElse(model.temperature()),
        topP.orElse(model.topP()),
        topK.orElse(model.sample() ? model.topK() : MOST_LIKELY),
        seed.orElseThrow());
  }
}
