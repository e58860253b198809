package org.meteora.eval.routes;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.Function;
import java.util.function.IntFunction;

/**
 * One token of a prompt or an answer.
 *
 * @param id in the tokenizer's vocabulary
 * @param piece the vocabulary's own spelling (byte-level BPE writes a space as Ġ)
 * @param text what the token adds to the text. A character whose bytes are spread over several
 *     tokens stands whole on the first of them; the others have an empty text
 * @param output true for a token the model wrote
 */
public record RoutedToken(int id, String piece, String text, boolean output) {

  /** Most tokens that are waited for before bytes are taken for broken UTF-8. */
  private static final int LONGEST_GROUP = 16;

  /**
   * Tokens of a prompt and its answer with their texts. Joined, the texts are the decoded sequence.
   *
   * @param decode token ids to text, special tokens kept, incomplete UTF-8 as U+FFFD
   * @param piece the vocabulary's entry for an id
   * @param promptTokens how many of {@code ids} are the prompt
   */
  public static List<RoutedToken> of(
      Function<int[], String> decode, IntFunction<String> piece, int[] ids, int promptTokens) {
    var texts = texts(decode, ids);
    var result = new ArrayList<RoutedToken>(ids.length);
    for (int i = 0; i < ids.length; i++) {
      result.add(new RoutedToken(ids[i], piece.apply(ids[i]), texts[i], i >= promptTokens));
    }
    return List.copyOf(result);
  }

  /** How many of a text's tokens are its prompt. */
  static int promptTokens(List<RoutedToken> tokens) {
    return (int) tokens.stream().takeWhile(token -> !token.output()).count();
  }

  /**
   * Splits the decoded text into the tokens' shares of it. Tokens are decoded together with the
   * ones before them, for some tokenizers drop a space at the start, and until the text no longer
   * ends in an unfinished character.
   */
  private static String[] texts(Function<int[], String> decode, int[] ids) {
    var texts = new String[ids.length];
    int context = 0;
    for (int start = 0; start < ids.length; ) {
      int before = decode.apply(Arrays.copyOfRange(ids, context, start)).length();
      var partial = new ArrayList<String>();
      int end = start;
      do {
        var text = decode.apply(Arrays.copyOfRange(ids, context, ++end));
        partial.add(text.substring(Math.min(before, text.length())));
      } while (partial.getLast().endsWith("\uFFFD")
          && end < ids.length
          && end - start < LONGEST_GROUP);
      share(partial, texts, start);
      context = start;
      start = end;
    }
    return texts;
  }

  /** Gives each token of a group what begins in it; {@code partial} holds the growing text. */
  private static void share(List<String> partial, String[] texts, int start) {
    var whole = partial.getLast();
    int from = 0;
    for (int i = 0; i < partial.size(); i++) {
      int to = whole.length();
      if (i + 1 < partial.size()) {
        var text = partial.get(i);
        to = text.length();
        while (to > 0 && text.charAt(to - 1) == '\uFFFD') {
          to--;
        }
        // the character that is unfinished here begins here
        if (to < text.length() && to < whole.length()) {
          to = whole.offsetByCodePoints(to, 1);
        }
        to = Math.clamp(to, from, whole.length());
      }
      texts[start + i] = whole.substring(from, to);
      from = to;
    }
  }
}
