package org.meteora.generate;

import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeSet;
import org.meteora.UserException;
import org.meteora.io.Jsonl;
import org.meteora.model.Architecture;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * How tokens are chosen, in Hugging Face's terms.
 *
 * @param sample draw from the distribution; otherwise take the most likely token
 * @param temperature divides the logits before sampling, above 0
 * @param topP keep the smallest set of tokens with this much probability, in (0, 1]
 * @param topK keep this many tokens; 0 keeps all
 * @param noRepeatNgramSize no n-gram of this size occurs twice in prompt and answer; 0 allows all
 * @param maxLength most tokens of prompt and answer together, padding not counted
 * @param padTokenId fills the left of shorter prompts
 */
public record GenerationConfig(
    boolean sample,
    double temperature,
    double topP,
    int topK,
    int noRepeatNgramSize,
    int maxLength,
    int maxNewTokens,
    List<Integer> eosTokenIds,
    int padTokenId,
    long seed) {

  private static final Logger LOG = LoggerFactory.getLogger(GenerationConfig.class);

  /** Greedy, without limits but {@code maxLength}. */
  public static GenerationConfig greedy(List<Integer> eosTokenIds, int maxLength) {
    int pad = eosTokenIds.isEmpty() ? 0 : eosTokenIds.getFirst();
    var eos = List.copyOf(eosTokenIds);
    return new GenerationConfig(false, 1, 1, 0, 0, maxLength, Integer.MAX_VALUE, eos, pad, 0);
  }

  /**
   * Settings that change what is generated and that are not implemented here, with the values that
   * change nothing.
   */
  private static final Map<String, Double> UNSUPPORTED =
      Map.of(
          "repetition_penalty", 1.0,
          "min_p", 0.0,
          "typical_p", 1.0,
          "epsilon_cutoff", 0.0,
          "eta_cutoff", 0.0,
          "min_length", 0.0,
          "min_new_tokens", 0.0,
          "num_beams", 1.0,
          "penalty_alpha", 0.0);

  private static final List<String> UNSUPPORTED_LISTS =
      List.of("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias");

  /**
   * Reads a model folder's {@code generation_config.json}; without one: greedy, with the end tokens
   * of {@code config.json}. Settings there that would change the answers and are not implemented
   * here are named in a warning.
   *
   * @throws UserException for a value that is impossible
   */
  public static GenerationConfig read(Path modelFolder, Architecture model) {
    var file = modelFolder.resolve("generation_config.json");
    JsonNode node = Files.exists(file) ? Jsonl.readFile(file) : Jsonl.JSON.createObjectNode();
    var eos =
        node.has("eos_token_id")
            ? ids(node.get("eos_token_id"), file)
            : ids(model.raw().get("eos_token_id"), modelFolder.resolve("config.json"));
    boolean sample = node.path("do_sample").asBoolean(false);
    warnOfUnsupported(node, file);
    // 0 stands for "greedy" in some folders that do not sample
    double minimum = sample ? Double.MIN_NORMAL : 0;
    double temperature = number(node, "temperature", 1, minimum, Double.MAX_VALUE, file);
    return new GenerationConfig(
        sample,
        temperature == 0 ? 1 : temperature,
        number(node, "top_p", 1, 0, 1, file),
        (int) number(node, "top_k", sample ? 50 : 0, 0, Integer.MAX_VALUE, file),
        (int) number(node, "no_repeat_ngram_size", 0, 0, Integer.MAX_VALUE, file),
        model.maxPositionEmbeddings(),
        Integer.MAX_VALUE,
        eos,
        // padding is the end token, as the original evaluates
        eos.stream().filter(id -> id < model.vocabSize()).findFirst().orElse(0),
        0);
  }

  private static void warnOfUnsupported(JsonNode node, Path file) {
    var ignored = new TreeSet<String>();
    UNSUPPORTED.forEach(
        (key, neutral) -> {
          if (node.path(key).isNumber() && node.get(key).doubleValue() != neutral) {
            ignored.add(key + " " + node.get(key));
          }
        });
    UNSUPPORTED_LISTS.stream().filter(key -> !node.path(key).isEmpty()).forEach(ignored::add);
    if (!ignored.isEmpty()) {
      LOG.warn("{}: not supported and left out: {}", file, String.join(", ", ignored));
    }
  }

  private static double number(
      JsonNode node, String key, double otherwise, double minimum, double maximum, Path file) {
    if (!node.hasNonNull(key)) {
      return otherwise;
    }
    double value = node.get(key).isNumber() ? node.get(key).doubleValue() : Double.NaN;
    if (!(value >= minimum && value <= maximum)) {
      throw new UserException(file + ": " + key + " is impossible: " + node.get(key));
    }
    return value;
  }

  private static List<Integer> ids(JsonNode node, Path file) {
    var result = new ArrayList<Integer>();
    if (node != null && !node.isNull()) {
      for (var each : node.isArray() ? node : Jsonl.JSON.createArrayNode().add(node)) {
        if (!each.isInt() || each.intValue() < 0) {
          throw new UserException(file + ": eos_token_id is impossible: " + node);
        }
        result.add(each.intValue());
      }
    }
    return List.copyOf(result);
  }

  /** The same but for these: everything that can be chosen without another model. */
  private GenerationConfig with(
      boolean sample,
      double temperature,
      double topP,
      int topK,
      int ngram,
      int most,
      int mostNew,
      long seed) {
    return new GenerationConfig(
        sample, temperature, topP, topK, ngram, most, mostNew, eosTokenIds, padTokenId, seed);
  }

  /** The same, drawing from the distribution. */
  public GenerationConfig withSampling(double temperature, double topP, int topK, long seed) {
    return with(true, temperature, topP, topK, noRepeatNgramSize, maxLength, maxNewTokens, seed);
  }

  /** The same, taking the most likely token. */
  public GenerationConfig withGreedy() {
    return with(false, 1, 1, 0, noRepeatNgramSize, maxLength, maxNewTokens, seed);
  }

  /** No so many tokens in a row twice; 0 for no such rule. */
  public GenerationConfig withNoRepeatNgramSize(int size) {
    return with(sample, temperature, topP, topK, size, maxLength, maxNewTokens, seed);
  }

  /** Tokens of prompt and answer together, at most. */
  public GenerationConfig withMaxLength(int length) {
    return with(sample, temperature, topP, topK, noRepeatNgramSize, length, maxNewTokens, seed);
  }

  /** Tokens of the answer, at most. */
  public GenerationConfig withMaxNewTokens(int tokens) {
    return with(sample, temperature, topP, topK, noRepeatNgramSize, maxLength, tokens, seed);
  }
}
