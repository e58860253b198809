package org.meteora.eval.metric;

import java.util.List;
import java.util.Map;

/** A score of cleaned answers against the truths. */
public interface Metric {
  /**
   * @param answers cleaned answers
   * @param truths what was expected, one for each answer
   * @return figures by name, in the order to show; a value is a number, a record, or null when
   *     there is nothing to score
   */
  Map<String, Object> score(List<String> answers, List<String> truths);
}
