package org.meteora.generate;

import java.util.ArrayList;
import java.util.List;

/**
 * The text of an answer as its tokens come; a character that is split over several tokens appears
 * when it is whole. Of one answer and one thread.
 */
public final class TextStream {
  private static final char INCOMPLETE = '\uFFFD';

  private final Tokenizer tokenizer;
  private final List<Integer> tokens = new ArrayList<>();
  private int shown;

  /** An empty stream of the tokens that this tokenizer makes. */
  public TextStream(Tokenizer tokenizer) {
    this.tokenizer = tokenizer;
  }

  /** The text that this token completes; often empty. */
  public String add(int token) {
    tokens.add(token);
    var text = text();
    return text.isEmpty() || text.charAt(text.length() - 1) == INCOMPLETE ? "" : from(text);
  }

  /** What is left at the end. */
  public String rest() {
    return from(text());
  }

  private String text() {
    return tokenizer.decode(tokens.stream().mapToInt(Integer::intValue).toArray(), true);
  }

  private String from(String text) {
    var fresh = text.substring(Math.min(shown, text.length()));
    shown = text.length();
    return fresh;
  }
}
