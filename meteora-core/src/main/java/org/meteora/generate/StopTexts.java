package org.meteora.generate;

import java.util.List;

/**
 * Texts that end an answer, and are no part of it.
 *
 * @param tokenizer of the answer's tokens
 * @param texts none of them empty
 */
public record StopTexts(Tokenizer tokenizer, List<String> texts) {
  public StopTexts {
    texts = List.copyOf(texts);
  }

  /** The text of an answer, up to the first of these. */
  public String before(int[] answer) {
    var text = tokenizer.decode(answer, true);
    return text.substring(0, first(text));
  }

  /** Whether one of these has come. */
  public boolean end(int[] answer) {
    if (texts.isEmpty()) {
      return false;
    }
    var text = tokenizer.decode(answer, true);
    return first(text) < text.length();
  }

  private int first(String text) {
    return texts.stream().mapToInt(text::indexOf).filter(at -> at >= 0).min().orElse(text.length());
  }

  /** How many characters at a text's end one of these begins with. */
  int mayBegin(String text) {
    int most = 0;
    for (var each : texts) {
      for (int length = Math.min(each.length() - 1, text.length()); length > most; length--) {
        if (text.regionMatches(text.length() - length, each, 0, length)) {
          most = length;
        }
      }
    }
    return most;
  }
}
