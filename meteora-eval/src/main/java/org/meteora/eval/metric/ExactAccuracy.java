package org.meteora.eval.metric;

import java.util.Locale;

/** Right: the answer equals the truth, in whatever case. */
public final class ExactAccuracy extends Accuracy {
  @Override
  boolean right(String answer, String truth) {
    return answer.toLowerCase(Locale.ROOT).equals(truth.toLowerCase(Locale.ROOT));
  }
}
