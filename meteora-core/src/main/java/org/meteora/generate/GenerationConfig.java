package org.meteora.generate;

import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.meteora.io.Jsonl;

/**
 * How tokens are chosen, in Hugging Face's terms.
 *
 * @param sample draw from the distribution; otherwise take the most likely token
 * @param temperature divides the logits before sampling, above 0
 * @param topP keep the smallest set of tokens with this much probability, in (0, 1]
 * @param topK keep this many tokens; 0 keeps all
 * @param noRepeatNgramSize no n-gram of this size occurs twice in prompt and answer; 0 allows all
 * @param maxLength most tokens of prompt and answer together, padding not counted
 * @param maxNewTokens most tokens of the answer
 * @param eosTokenIds tokens that end an answer
 * @param padTokenId fills the left of shorter prompts
 * @param seed of the sampling
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

  /** Greedy, without limits but {@code maxLength}. */
  public static GenerationConfig greedy(List<Integer> eosTokenIds, int maxLength) {
    return new GenerationConfig(
        false,
        1,
        1,
        0,
        0,
        maxLength,
        Integer.MAX_VALUE,
        List.copyOf(eosTokenIds),
        eosTokenIds.isEmpty() ? 0 : eosTokenIds.getFirst(),
        0);
  }

  /**
   * Reads a model folder's {@code generation_config.json}; without one: greedy, with the end tokens
   * of {@code config.json}.
   *
   * @param modelConfig the folder's {@code config.json}
   * @param maxLength the model's positions
   */
  public static GenerationConfig read(Path modelFolder, JsonNode modelConfig, int maxLength) {
    var file = modelFolder.resolve("generation_config.json");
    JsonNode node = Files.exists(file) ? Jsonl.readFile(file) : Jsonl.JSON.createObjectNode();
    var eos =
        ids(node.has("eos_token_id") ? node.get("eos_token_id") : modelConfig.get("eos_token_id"));
    boolean sample = node.path("do_sample").asBoolean(false);
    return new GenerationConfig(
        sample,
        number(node, "temperature", 1),
        number(node, "top_p", 1),
        (int) number(node, "top_k", sample ? 50 : 0),
        (int) number(node, "no_repeat_ngram_size", 0),
        maxLength,
        Integer.MAX_VALUE,
        eos,
        // padding is the end token, as the original evaluates
        eos.isEmpty() ? 0 : eos.getFirst(),
        0);
  }

  private static double number(JsonNode node, String key, double otherwise) {
    return node.hasNonNull(key) ? node.get(key).asDouble(otherwise) : otherwise;
  }

  private static List<Integer> ids(JsonNode node) {
    var result = new ArrayList<Integer>();
    if (node != null && node.isArray()) {
      node.forEach(each -> result.add(each.asInt()));
    } else if (node != null && node.isInt()) {
      result.add(node.asInt());
    }
    return List.copyOf(result);
  }

  /** The same, drawing from the distribution. */
  public GenerationConfig withSampling(double temperature, double topP, int topK, long seed) {
    return new GenerationConfig(
        true,
        temperature,
        topP,
        topK,
        noRepeatNgramSize,
        maxLength,
        maxNewTokens,
        eosTokenIds,
        padTokenId,
        seed);
  }

  /** The same, taking the most likely token. */
  public GenerationConfig withGreedy() {
    return new GenerationConfig(
        false, 1, 1, 0, noRepeatNgramSize, maxLength, maxNewTokens, eosTokenIds, padTokenId, seed);
  }

  public GenerationConfig withNoRepeatNgramSize(int size) {
    return new GenerationConfig(
        sample,
        temperature,
        topP,
        topK,
        size,
        maxLength,
        maxNewTokens,
        eosTokenIds,
        padTokenId,
        seed);
  }

  public GenerationConfig withMaxLength(int length) {
    return new GenerationConfig(
        sample,
        temperature,
        topP,
        topK,
        noRepeatNgramSize,
        length,
        maxNewTokens,
        eosTokenIds,
        padTokenId,
        seed);
  }

  public GenerationConfig withMaxNewTokens(int tokens) {
    return new GenerationConfig(
        sample,
        temperature,
        topP,
        topK,
        noRepeatNgramSize,
        maxLength,
        tokens,
        eosTokenIds,
        padTokenId,
        seed);
  }

  public GenerationConfig withSeed(long value) {
    return new GenerationConfig(
        sample,
        temperature,
        topP,
        topK,
        noRepeatNgramSize,
        maxLength,
        maxNewTokens,
        eosTokenIds,
        padTokenId,
        value);
  }
}
