package org.meteora.eval.metric;

import java.math.BigDecimal;
import java.util.Locale;
import java.util.Optional;
import java.util.regex.Pattern;

/**
 * Right: the answer's number equals the truth's. The truth's follows {@code ####}; the answer's is
 * the first after "the answer is", else its last. Commas are dropped, {@code 18.00} equals 18.
 */
public final class Gsm8kAccuracy extends Accuracy {
  /** A minus counts only where no term stands before it: 5-3 is no −3. */
  private static final Pattern NUMBER =
      Pattern.compile("(?:(?<![\\d)])-)?\\d(?:[\\d,]*\\d)?(?:\\.\\d+)?");

  private static final String MARK = "####";
  private static final String PHRASE = "the answer is";

  @Override
  boolean right(String answer, String truth) {
    int mark = truth.indexOf(MARK);
    var expected = first(mark < 0 ? truth : truth.substring(mark + MARK.length()));
    return expected.isPresent()
        && given(answer).filter(number -> number.compareTo(expected.get()) == 0).isPresent();
  }

  private static Optional<BigDecimal> given(String answer) {
    int phrase = answer.toLowerCase(Locale.ROOT).indexOf(PHRASE);
    if (phrase >= 0) {
      var number = first(answer.substring(phrase + PHRASE.length()));
      if (number.isPresent()) {
        return number;
      }
    }
    return NUMBER.matcher(answer).results().reduce((a, b) -> b).map(m -> number(m.group()));
  }

  private static Optional<BigDecimal> first(String text) {
    return NUMBER.matcher(text).results().findFirst().map(m -> number(m.group()));
  }

  private static BigDecimal number(String digits) {
    return new BigDecimal(digits.replace(",", ""));
  }
}
