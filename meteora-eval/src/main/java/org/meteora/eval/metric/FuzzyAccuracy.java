package org.meteora.eval.metric;

import java.util.Locale;

/** Right: the truth occurs in the answer, in whatever case. */
public final class FuzzyAccuracy extends Accuracy {
  @Override
  boolean right(String answer, String truth) {
    return !truth.isEmpty()
        && answer.toLowerCase(Locale.ROOT).contains(truth.toLowerCase(Locale.ROOT));
  }
}
