package org.meteora.eval.routes;

import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Locale;

/**
 * How adapters are told apart, the same in every figure: seven colours that people with any colour
 * vision can tell apart (Okabe and Ito), times seven fill patterns, and a short code of letters
 * which is never shared.
 */
final class Palette {
  /** RGB; adapter {@code i} has colour {@code i % 7} and pattern {@code i / 7 % 7}. */
  static final int[] COLOURS = {
    0xE69F00, 0x56B4E9, 0x009E73, 0xCC79A7, 0x0072B2, 0xD55E00, 0xF0E442
  };

  /** Plain, diagonal up, diagonal down, horizontal, dots, vertical, crossed. */
  static final int PATTERNS = 7;

  private Palette() {}

  static int colour(int adapter) {
    return COLOURS[adapter % COLOURS.length];
  }

  static int pattern(int adapter) {
    return adapter / COLOURS.length % PATTERNS;
  }

  /** A short code for each name: the words' initials, told apart by digits where they are equal. */
  static List<String> codes(List<String> names) {
    var used = new HashSet<String>();
    var codes = new ArrayList<String>();
    for (var name : names) {
      var words = name.strip().split("[^\\p{L}\\p{N}]+");
      var code = new StringBuilder();
      for (var word : words) {
        if (!word.isEmpty() && code.codePointCount(0, code.length()) < 3) {
          code.appendCodePoint(word.codePointAt(0));
        }
      }
      if (words.length == 1 && words[0].length() > 1) {
        code.append(words[0].charAt(1));
      }
      var base = code.isEmpty() ? "?" : code.toString().toUpperCase(Locale.ROOT);
      var unique = base;
      for (int i = 2; !used.add(unique); i++) {
        unique = base + i;
      }
      codes.add(unique);
    }
    return List.copyOf(codes);
  }
}
