package org.meteora.eval.metric;

import java.util.Locale;

/** Right: "yes" is in the first five characters of answer and truth, or "no" is in both. */
public final class YesNoAccuracy extends Accuracy {
  private static final int BEGINNING = 5;

  @Override
  boolean right(String answer, String truth) {
    var a = beginning(answer);
    var t = beginning(truth);
    return a.contains("yes") && t.contains("yes") || a.contains("no") && t.contains("no");
  }

  private static String beginning(String text) {
    int end = Math.min(BEGINNING, text.codePointCount(0, text.length()));
    return text.substring(0, text.offsetByCodePoints(0, end)).toLowerCase(Locale.ROOT);
  }
}
