package org.meteora.generate;

import java.util.ArrayList;
import java.util.HashSet;
import java.util.Optional;
import java.util.regex.Pattern;

/**
 * Tells from a pattern of a tokenizer, in the syntax of Oniguruma, whether the steps of a match
 * grow with the text's length alone. Oniguruma tries one way after the other, gives up after ten
 * million, and the library around it then ends the process.
 *
 * <p>Counted are the ways in which what stands before something that can fail may match: one
 * unbounded repetition is a way for each character, two of them are the square of that, and a
 * repeated group whose content may match in several ways is an exponential. Of alternatives that
 * begin with different characters only one can match at a place. The patterns of known tokenizers
 * have one unbounded repetition at most; what is not understood is taken for the worst.
 */
final class PatternCost {
  /** Ways that do not depend on the text: choices and bounded repetitions. */
  private static final double MOST_WAYS = 1 << 12;

  /** Characters of a text that may be given to a tokenizer whose patterns are bounded. */
  static final int LONGEST_TEXT = 1_000_000;

  /** Ways for each character of a text, so that the longest stays below ten million. */
  private static final double MOST_WAYS_A_CHARACTER = 8;

  /** What stands for itself only behind a backslash. */
  private static final String META = "^$.[](){}*+?|\\";

  private static final int DEEPEST = 30;
  private static final Pattern REPETITION =
      Pattern.compile("[*+?]|\\{(?=,?\\d)(\\d{1,6})?(?:,(\\d{0,6}))?}");

  private static final Cost ONE = new Cost(1, 0, 1, 0, true);
  private static final Cost HOPELESS = new Cost(1, 1, 1, 99, true);

  private final String pattern;
  private int at;
  private int depth;

  private PatternCost(String pattern) {
    this.pattern = pattern;
  }

  /**
   * Of a part of a pattern.
   *
   * @param ways in which it can match at a place, times the text's length for each of {@code loops}
   * @param vain ways that are tried before it fails, times the length for each of {@code vainLoops}
   * @param canFail whether there are texts that it does not match
   */
  private record Cost(double ways, int loops, double vain, int vainLoops, boolean canFail) {}

  /** Whether the number of steps is at most the text's length, times a small number. */
  static boolean isBounded(String pattern) {
    var parser = new PatternCost(pattern);
    try {
      var cost = parser.choice();
      double most = cost.vainLoops == 0 ? MOST_WAYS : MOST_WAYS_A_CHARACTER;
      return parser.at == pattern.length() && cost.vainLoops <= 1 && cost.vain <= most;
    } catch (StringIndexOutOfBoundsException | IllegalArgumentException e) {
      return false; // ends in the midst of something
    }
  }

  private Cost choice() {
    if (++depth > DEEPEST) {
      throw new IllegalArgumentException("nested too deeply");
    }
    var choices = new ArrayList<Cost>();
    var firsts = new HashSet<Character>();
    boolean distinct = true;
    do {
      int start = at;
      choices.add(sequence());
      var first = first(start);
      distinct &= first.isPresent() && firsts.add(first.get());
    } while (take("|"));
    depth--;
    var ways = choices.stream().mapToDouble(Cost::ways);
    int vainLoops = choices.stream().mapToInt(Cost::vainLoops).max().orElse(0);
    // beside those that grow with the text the others hardly count, unless they are too many
    var vain =
        choices.stream()
            .filter(each -> each.vainLoops == vainLoops || each.vain > MOST_WAYS)
            .mapToDouble(Cost::vain);
    return new Cost(
        distinct ? ways.max().orElseThrow() : ways.sum(),
        choices.stream().mapToInt(Cost::loops).max().orElse(0),
        vain.sum(),
        vainLoops,
        choices.stream().allMatch(Cost::canFail));
  }

  /**
   * The character that every match of a sequence begins with, in lower case, where that is plain to
   * see: a visible ASCII character that stands for itself and must be there. Whether case counts is
   * not asked; outside ASCII two letters may stand for one where it does not.
   */
  private Optional<Character> first(int start) {
    boolean escaped = pattern.startsWith("\\", start);
    int where = escaped ? start + 1 : start;
    if (where >= at) {
      return Optional.empty(); // it is empty
    }
    char c = pattern.charAt(where);
    boolean meta = META.indexOf(c) >= 0;
    boolean itself = escaped ? meta : c > ' ' && c < 127 && !meta;
    boolean may = where + 1 < at && "?*{".indexOf(pattern.charAt(where + 1)) >= 0;
    return itself && !may ? Optional.of(Character.toLowerCase(c)) : Optional.empty();
  }

  private Cost sequence() {
    var parts = new ArrayList<Cost>();
    while (at < pattern.length() && peek() != '|' && peek() != ')') {
      parts.add(repeated(atom()));
    }
    double ways = 1;
    int loops = 0;
    double vain = 1;
    int vainLoops = 0;
    boolean canFail = false;
    for (var part : parts) {
      if (part.canFail) {
        vain = Math.max(vain, ways * part.vain);
        vainLoops = Math.max(vainLoops, loops + part.vainLoops);
        canFail = true;
      }
      ways *= part.ways;
      loops += part.loops;
    }
    return new Cost(ways, loops, vain, vainLoops, canFail);
  }

  private Cost repeated(Cost part) {
    var found = REPETITION.matcher(pattern).region(at, pattern.length());
    if (!found.lookingAt()) {
      return part; // a brace that stands for itself may come next
    }
    char kind = peek();
    at = found.end();
    double least = kind == '{' ? number(found.group(1), 0) : kind == '+' ? 1 : 0;
    double most =
        switch (kind) {
          case '?' -> 1;
          case '{' -> number(found.group(2), least);
          default -> Double.POSITIVE_INFINITY;
        };
    if (!take("?") && kind != '{') { // as few as will do
      take("+"); // as many as there are
    }
    if (at < pattern.length() && "*+?".indexOf(peek()) >= 0) {
      return HOPELESS; // repeats the repetition
    }
    boolean canFail = least > 0 && part.canFail;
    if (most <= 1) {
      double none = least == 0 ? 1 : 0;
      return new Cost(part.ways + none, part.loops, part.vain, part.vainLoops, canFail);
    }
    if (part.ways > 1 || part.loops > 0 || part.vainLoops > 0) {
      return HOPELESS;
    }
    // on the way back every round tries what it has not tried of its content
    return most == Double.POSITIVE_INFINITY
        ? new Cost(part.vain, 1, part.vain, 0, canFail)
        : new Cost(Math.max(1, most - least + 1) * part.vain, 0, part.vain, 0, canFail);
  }

  private Cost atom() {
    char c = pattern.charAt(at++);
    if (c == '[') {
      set();
    }
    return c == '(' ? group() : c == '\\' ? escaped() : ONE;
  }

  private Cost escaped() {
    char what = pattern.charAt(at++);
    if (what == 'g') {
      return HOPELESS; // calls a group
    }
    if (what == 'k' && at < pattern.length()) {
      at = indexOf('>') + 1;
    } else if ("pPxuo".indexOf(what) >= 0 && at < pattern.length() && peek() == '{') {
      at = indexOf('}') + 1;
    } else if (what == 'u' || what == 'x') {
      int digits = what == 'u' ? 4 : 2;
      while (digits-- > 0 && at < pattern.length() && Character.digit(peek(), 16) >= 0) {
        at++;
      }
    }
    // a line's or a letter's end may be seen in two places
    return what == 'R' || what == 'X' ? new Cost(2, 0, 1, 0, true) : ONE;
  }

  private Cost group() {
    if (take("?#")) {
      at = indexOf(')') + 1;
      return new Cost(1, 0, 1, 0, false);
    }
    boolean looks = take("?=") || take("?!") || take("?<=") || take("?<!");
    if (!looks && !take("?:") && !take("?>") && take("?")) {
      if (take("<") || take("'")) {
        int name = at;
        while (Character.isLetterOrDigit(peek()) || peek() == '_') {
          at++;
        }
        if (at == name || !(take(">") || take("'"))) {
          return HOPELESS;
        }
      } else {
        while (Character.isLetter(peek()) || peek() == '-') {
          if (peek() == 'x') {
            return HOPELESS; // white space and comments are not seen as such here
          }
          at++;
        }
        if (take(")")) {
          return choice(); // changes how the rest is read, and makes a group of it
        }
        if (!take(":")) {
          return HOPELESS; // absence, conditions and what else there is
        }
      }
    }
    var inside = choice();
    if (!take(")")) {
      throw new IllegalArgumentException("no end");
    }
    return looks ? new Cost(1, 0, inside.ways * inside.vain, inside.vainLoops, true) : inside;
  }

  private void set() {
    if (++depth > DEEPEST) {
      throw new IllegalArgumentException("nested too deeply");
    }
    take("^");
    for (boolean first = true; first || peek() != ']'; first = false) {
      char c = pattern.charAt(at++);
      if (c == '\\') {
        at++;
      } else if (c == '[' && peek() == ':') {
        int end = pattern.indexOf(":]", at);
        if (end > 0) {
          at = end + 2;
        }
      } else if (c == '[') {
        set();
      }
    }
    at++;
    depth--;
  }

  /** A bound of a repetition: no limit where it is empty. */
  private static double number(String bound, double otherwise) {
    return bound == null
        ? otherwise
        : bound.isEmpty() ? Double.POSITIVE_INFINITY : Integer.parseInt(bound);
  }

  private int indexOf(char end) {
    int found = pattern.indexOf(end, at);
    if (found < 0) {
      throw new IllegalArgumentException("no end");
    }
    return found;
  }

  private char peek() {
    return pattern.charAt(at);
  }

  private boolean take(String text) {
    boolean there = pattern.startsWith(text, at);
    at += there ? text.length() : 0;
    return there;
  }
}
