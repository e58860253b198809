package org.meteora.eval.metric;

import java.util.Collections;
import java.util.List;
import java.util.Map;

/** The share of answers that are right, 0…1, of all answers, empty ones too. */
abstract class Accuracy implements Metric {
  static final String NAME = "Accuracy";

  abstract boolean right(String answer, String truth);

  @Override
  public final Map<String, Object> score(List<String> answers, List<String> truths) {
    if (answers.isEmpty()) {
      return Collections.singletonMap(NAME, null);
    }
    int right = 0;
    for (int i = 0; i < answers.size(); i++) {
      right += right(answers.get(i), truths.get(i)) ? 1 : 0;
    }
    return Map.of(NAME, right / (double) answers.size());
  }
}
