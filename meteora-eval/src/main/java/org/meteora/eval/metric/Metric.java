package org.meteora.eval.metric;

import java.util.List;
import java.util.Map;
import org.meteora.eval.statistics.Figure;

/** A score of cleaned answers against the truths. */
public interface Metric {
  /**
   * @param answers cleaned answers
   * @param truths what was expected, one for each answer
   * @return figures by name, in the order to show; a value is a number, a record, or null when
   *     there is nothing to score
   */
  Map<String, Object> score(List<String> answers, List<String> truths);

  /**
   * What the scores are made of, sample by sample, for intervals and comparisons; their values are
   * those of {@link #score}.
   *
   * @param answers as for {@link #score}
   * @param truths as for {@link #score}
   */
  List<Figure> figures(List<String> answers, List<String> truths);
}
