package org.meteora.generate;

import java.util.ArrayList;
import java.util.List;

/**
 * The text of an answer as its tokens come; a character that is split over several tokens appears
 * when it is whole, and what may be the beginning of a text that ends it when it is none. Of one
 * answer and one thread.
 */
public final class TextStream {
  private static final char INCOMPLETE = '\uFFFD';

  private final StopTexts stops;
  private final List<Integer> tokens = new ArrayList<>();
  private int shown;

  /** An empty stream of the tokens that this tokenizer makes. */
  public TextStream(Tokenizer tokenizer) {
    this(new StopTexts(tokenizer, List.of()));
  }

  /** An empty stream that ends before these. */
  public TextStream(StopTexts stops) {
    this.stops = stops;
  }

  /** Takes a token and leaves its text to {@link #fresh}. */
  public void add(int token) {
    tokens.add(token);
  }

  /** The text that tokens have completed since it was asked for last; reads all tokens so far. */
  public String fresh() {
    var text = text();
    int end = text.length();
    while (end > 0 && text.charAt(end - 1) == INCOMPLETE) {
      end--;
    }
    text = text.substring(0, end);
    return from(text.substring(0, end - stops.mayBegin(text)));
  }

  /** What is left at the end. */
  public String rest() {
    return from(text());
  }

  private String text() {
    return stops.before(tokens.stream().mapToInt(Integer::intValue).toArray());
  }

  private String from(String text) {
    var fresh = text.substring(Math.min(shown, text.length()));
    shown = Math.max(shown, text.length());
    return fresh;
  }
}
