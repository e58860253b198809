package org.meteora.eval.routes;

import java.io.ByteArrayOutputStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.function.IntUnaryOperator;
import java.util.stream.IntStream;

/** Made-up traces, and a tokenizer of single bytes. */
final class Traces {
  static final List<String> TASKS =
      List.of(
          "abstract_narrative_understanding",
          "alpaca",
          "cnn_dailymail",
          "contextual_parametric_knowledge_conflicts",
          "cs_algorithms",
          "disfl_qa",
          "elementary_math_qa",
          "epistemic_reasoning",
          "formal_fallacies_syllogisms_negation",
          "goal_step_wikihow",
          "gsm8k",
          "language_identification",
          "linguistics_puzzles",
          "logical_deduction",
          "news_commentary_de",
          "news_commentary_es",
          "news_commentary_it",
          "object_counting",
          "paragraph_segmentation",
          "play_dialog_same_or_different",
          "question_selection",
          "reasoning_about_colored_objects",
          "strategyqa",
          "topical_chat",
          "tracking_shuffled_objects",
          "unit_conversion",
          "vitaminc_fact_verification",
          "winowhy");

  private Traces() {}

  /** Token ids are bytes; unfinished characters decode to U+FFFD, as byte-level BPE does. */
  static String decodeBytes(int[] ids) {
    var bytes = new ByteArrayOutputStream();
    IntStream.of(ids).forEach(bytes::write);
    return bytes.toString(StandardCharsets.UTF_8);
  }

  static int[] bytes(String text) {
    var bytes = text.getBytes(StandardCharsets.UTF_8);
    return IntStream.range(0, bytes.length).map(i -> bytes[i] & 255).toArray();
  }

  static List<RoutedToken> byteTokens(String text, int promptTokens) {
    return RoutedToken.of(
        Traces::decodeBytes, id -> "<0x%02X>".formatted(id), bytes(text), promptTokens);
  }

  /** Words with the space or line end before or after them. */
  static List<RoutedToken> words(String prompt, String answer) {
    var tokens = new ArrayList<RoutedToken>();
    for (var text : List.of(prompt, answer)) {
      var match =
          java.util.regex.Pattern.compile(" ?[\\p{L}\\p{N}]{1,7}| ?[^\\p{L}\\p{N}\\s]+|\\n+|\\s")
              .matcher(text);
      while (match.find()) {
        tokens.add(
            new RoutedToken(
                tokens.size(),
                match.group().replace(' ', 'Ġ').replace('\n', 'Ċ'),
                match.group(),
                text == answer));
      }
    }
    return tokens;
  }

  /**
   * Two adapters for each gate and token: mostly the one the token should have, else a random one.
   *
   * @param right the adapter a token should have, or −1
   */
  static RoutingTrace trace(
      List<String> adapters,
      List<RoutedToken> tokens,
      List<Part> parts,
      int layers,
      IntUnaryOperator right,
      long seed) {
    var random = new Random(seed);
    var recorder = new RoutingRecorder();
    int prompt = (int) tokens.stream().filter(token -> !token.output()).count();
    // the last token was written but not read
    for (int from = 0; from < tokens.size() - (prompt < tokens.size() ? 1 : 0); ) {
      int count = from == 0 ? prompt : 1;
      for (int layer = 0; layer < layers; layer++) {
        for (int module = 0; module < 7; module++) {
          var indices = new int[count * 2];
          var weights = new float[count * 2];
          for (int t = 0; t < count; t++) {
            int own = right.applyAsInt(from + t);
            int first = own >= 0 && random.nextInt(10) < 7 ? own : random.nextInt(adapters.size());
            indices[t * 2] = first;
            indices[t * 2 + 1] =
                (first + 1 + random.nextInt(adapters.size() - 1)) % adapters.size();
            weights[t * 2] = 0.5f + random.nextFloat() / 2;
            weights[t * 2 + 1] = 1 - weights[t * 2];
          }
          recorder.onRouting(layer, module, 1, count, 2, indices, weights);
        }
      }
      from += count;
    }
    return recorder.trace(adapters, tokens, parts, Map.of("seed", seed));
  }

  static IntUnaryOperator expected(List<Part> parts, List<String> adapters) {
    return token ->
        parts.stream()
            .filter(part -> part.from() <= token && token < part.to())
            .findFirst()
            .map(part -> adapters.indexOf(part.task()))
            .orElse(-1);
  }
}
