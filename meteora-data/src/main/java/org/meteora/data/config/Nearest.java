package org.meteora.data.config;

import java.util.Collection;
import java.util.Comparator;
import java.util.Locale;
import java.util.Optional;
import java.util.stream.IntStream;

/** The known word that a misspelt one probably means. */
public final class Nearest {
  private Nearest() {}

  /**
   * The nearest of the known words by edit distance, if it is near enough to be meant. Case does
   * not count.
   */
  public static Optional<String> to(String word, Collection<String> known) {
    return known.stream()
        .min(
            Comparator.<String>comparingInt(each -> distance(word, each))
                .thenComparing(each -> each))
        .filter(each -> distance(word, each) <= Math.max(2, each.length() / 3));
  }

  /** {@code ": did you mean X?"}, or nothing. */
  public static String hint(String word, Collection<String> known) {
    return to(word, known).map(each -> "; did you mean \"" + each + "\"?").orElse("");
  }

  private static int distance(String word, String other) {
    var a = word.toLowerCase(Locale.ROOT);
    var b = other.toLowerCase(Locale.ROOT);
    var row = IntStream.rangeClosed(0, b.length()).toArray();
    for (int i = 1; i <= a.length(); i++) {
      int diagonal = row[0]++;
      for (int j = 1; j <= b.length(); j++) {
        int replaced = diagonal + (a.charAt(i - 1) == b.charAt(j - 1) ? 0 : 1);
        diagonal = row[j];
        row[j] = Math.min(replaced, 1 + Math.min(diagonal, row[j - 1]));
      }
    }
    return row[b.length()];
  }
}
