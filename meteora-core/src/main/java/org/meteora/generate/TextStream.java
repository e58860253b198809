package org.meteora.generate;

import java.util.ArrayList;
import java.util.List;

/**
 * The text of an answer as its tokens come; a character that is split over several tokens appears
 * when it is whole, and what may be the beginning of a text that ends it when it is none. A token
 * takes the same time however long the answer is. Of one answer and one thread.
 */
public final class TextStream {
  private static final char INCOMPLETE = '\uFFFD';

  private final StopTexts stops;

  /**
   * The last tokens. What some mean depends on those before them, such as whether a space begins a
   * text: so they are read behind the last ones that have a text.
   */
  private final List<Integer> tokens = new ArrayList<>();

  private int settled; // of these tokens
  private final StringBuilder text = new StringBuilder();
  private int settledText; // of its characters
  private int end = Integer.MAX_VALUE; // of the text, where a stop begins
  private int read; // of these tokens
  private int shown; // of the text

  /** An empty stream of the tokens that this tokenizer makes. */
  public TextStream(Tokenizer tokenizer) {
    this(new StopTexts(tokenizer, List.of()));
  }

  /** An empty stream that ends before these. */
  public TextStream(StopTexts stops) {
    this.stops = stops;
  }

  /** Takes a token and leaves its text to the other methods. */
  public void add(int token) {
    tokens.add(token);
  }

  /** The text that tokens have completed since it was asked for last. */
  public String fresh() {
    read();
    if (hasEnded()) {
      return upTo(end);
    }
    int whole = text.length();
    while (whole > 0 && text.charAt(whole - 1) == INCOMPLETE) {
      whole--;
    }
    return upTo(whole - stops.mayBegin(text, whole));
  }

  /** What is left at the end. */
  public String rest() {
    read();
    return upTo(Math.min(end, text.length()));
  }

  /** Whether a text has come that ends the answer. */
  boolean hasEnded() {
    read();
    return end < text.length();
  }

  private void read() {
    if (read == tokens.size() || end < text.length()) {
      return;
    }
    int before = decode(settled).length();
    var all = decode(tokens.size());
    text.setLength(settledText);
    text.append(all, Math.min(before, all.length()), all.length());
    end = stops.first(text, settledText);
    int length = text.length();
    if (length > settledText && text.charAt(length - 1) != INCOMPLETE) {
      tokens.subList(0, settled).clear();
      settled = tokens.size();
      settledText = length;
    }
    read = tokens.size();
  }

  private String decode(int count) {
    var first = tokens.subList(0, count).stream().mapToInt(Integer::intValue).toArray();
    return stops.tokenizer().decode(first, true);
  }

  private String upTo(int to) {
    var fresh = text.substring(Math.min(shown, to), to);
    shown = Math.max(shown, to);
    return fresh;
  }
}
