package org.meteora.generate;

import java.util.List;
import java.util.function.IntPredicate;

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
    return text.substring(0, first(new StringBuilder(text), 0));
  }

  /** Takes an answer's tokens one by one, and says of each whether one of these has come. */
  public IntPredicate ofAnswer() {
    if (texts.isEmpty()) {
      return token -> false;
    }
    var stream = new TextStream(this);
    return token -> {
      stream.add(token);
      return stream.hasEnded();
    };
  }

  /**
   * Where the first of these begins in a text, or its length.
   *
   * @param known how much of it has none
   */
  int first(StringBuilder text, int known) {
    int first = text.length();
    for (var each : texts) {
      int at = text.indexOf(each, Math.max(0, known - each.length() + 1));
      first = at < 0 ? first : Math.min(first, at);
    }
    return first;
  }

  /** How many characters before the end of a text one of these begins with. */
  int mayBegin(StringBuilder text, int end) {
    int most = 0;
    for (var each : texts) {
      for (int length = Math.min(each.length() - 1, end); length > most; length--) {
        if (each.startsWith(text.substring(end - length, end))) {
          most = length;
        }
      }
    }
    return most;
  }
}
