package org.meteora.eval.routes;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashSet;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Locale;
import java.util.stream.IntStream;

/**
 * How adapters are told apart: seven colours that people with any colour vision can tell apart
 * (Okabe and Ito), times seven fill patterns, and a short code of letters which is never shared.
 */
final class Palette {
  /** RGB; look {@code i} has colour {@code i % 7} and pattern {@code i / 7 % 7}. */
  static final List<Integer> COLOURS =
      List.of(0xE69F00, 0x56B4E9, 0x009E73, 0xCC79A7, 0x0072B2, 0xD55E00, 0xF0E442);

  /** Plain, diagonal up, diagonal down, horizontal, dots, vertical, crossed. */
  static final int PATTERNS = 7;

  private Palette() {}

  static int colour(int look) {
    return COLOURS.get(look % COLOURS.size());
  }

  static int pattern(int look) {
    return look / COLOURS.size() % PATTERNS;
  }

  /**
   * Which colour and pattern each adapter gets in a figure: first the adapters that the parts
   * expect, in the order asked (so a composite's tasks look the same for every sample), then the
   * others by falling share. The seven that matter most thus differ by colour alone.
   *
   * @return for each adapter its look
   */
  static int[] looks(RoutingTrace trace) {
    var order = new LinkedHashSet<Integer>();
    trace.parts().forEach(part -> order.add(trace.adapters().indexOf(part.task())));
    order.remove(-1);
    var sums = new double[trace.adapters().size()];
    for (int t = 0; t < trace.routedTokens(); t++) {
      var shares = trace.shares(RoutingTrace.ALL, RoutingTrace.ALL, t);
      for (int a = 0; a < sums.length; a++) {
        sums[a] += shares[a];
      }
    }
    IntStream.range(0, sums.length)
        .boxed()
        .sorted(Comparator.comparingDouble(a -> -sums[a]))
        .forEach(order::add);
    var looks = new int[sums.length];
    int look = 0;
    for (int adapter : order) {
      looks[adapter] = look++;
    }
    return looks;
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
