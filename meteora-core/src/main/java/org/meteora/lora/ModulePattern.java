package org.meteora.lora;

import com.google.re2j.Pattern;
import com.google.re2j.PatternSyntaxException;
import java.util.Optional;

/**
 * A pattern of PEFT's for the path of a module. RE2 matches in time linear in the text, whatever
 * the pattern; it reads Python's named groups, but no look-around and no back-references.
 *
 * @param plain the pattern where it is {@link #PLAIN}, else null
 * @param whole matches a module's whole path; null for a plain one
 * @param end matches the path or its end behind a dot; null for a plain one
 */
record ModulePattern(String plain, Pattern whole, Pattern end) {
  /** Longer ones, or deeper ones, are no one's; they would fill memory or stack. */
  private static final int LONGEST = 20_000;

  private static final int DEEPEST = 100;
  private static final java.util.regex.Pattern REPEAT =
      java.util.regex.Pattern.compile("\\{(\\d{1,9})?(?:,(\\d{1,9})?)?\\}");

  /** Letters and dots, of which a dot stands for any character: matched without RE2. */
  private static final java.util.regex.Pattern PLAIN =
      java.util.regex.Pattern.compile("[A-Za-z0-9_.]+");

  /** Empty where the pattern is no pattern, or of a syntax that RE2 does not know. */
  static Optional<ModulePattern> compile(String pattern) {
    if (pattern.length() > LONGEST || depth(pattern) > DEEPEST || repeats(pattern) > LONGEST) {
      return Optional.empty();
    }
    if (PLAIN.matcher(pattern).matches()) {
      return Optional.of(new ModulePattern(pattern, null, null));
    }
    try {
      return Optional.of(
          new ModulePattern(
              null, Pattern.compile(pattern), Pattern.compile("(?:.*\\.)?(?:" + pattern + ")")));
    } catch (PatternSyntaxException e) {
      return Optional.empty();
    }
  }

  private static int depth(String pattern) {
    int depth = 0;
    int deepest = 0;
    for (int i = 0; i < pattern.length(); i++) {
      depth += pattern.charAt(i) == '(' ? 1 : pattern.charAt(i) == ')' ? -1 : 0;
      deepest = Math.max(deepest, depth);
    }
    return deepest;
  }

  /** How often a part is written out at most: RE2 writes counted repetitions out. */
  private static double repeats(String pattern) {
    double product = pattern.length();
    var found = REPEAT.matcher(pattern);
    while (found.find()) {
      var count = found.group(2) == null ? found.group(1) : found.group(2);
      product *= count == null ? 1 : Math.max(1, Integer.parseInt(count));
    }
    return product / Math.max(1, pattern.length());
  }

  /** Python's {@code re.fullmatch}. */
  boolean matches(String module) {
    return plain == null
        ? whole.matches(module)
        : plain.length() == module.length() && ends(module);
  }

  /** PEFT's rule for ranks and alphas: the path, or its end behind a dot. */
  boolean matchesEnd(String module) {
    return plain == null ? end.matches(module) : ends(module);
  }

  private boolean ends(String module) {
    int from = module.length() - plain.length();
    if (from < 0 || from > 0 && module.charAt(from - 1) != '.') {
      return false;
    }
    for (int i = 0; i < plain.length(); i++) {
      if (plain.charAt(i) != '.' && plain.charAt(i) != module.charAt(from + i)) {
        return false;
      }
    }
    return true;
  }
}
