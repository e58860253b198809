package org.meteora.eval.metric;

import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import org.meteora.eval.statistics.Figure;

/** The share of answers that are right, 0…1, of all answers, empty ones too. */
abstract class Accuracy implements Metric {
  abstract boolean right(String answer, String truth);

  @Override
  public final Map<String, Object> score(List<String> answers, List<String> truths) {
    return Collections.singletonMap(
        Figure.ACCURACY, answers.isEmpty() ? null : figures(answers, truths).getFirst().score());
  }

  @Override
  public final List<Figure> figures(List<String> answers, List<String> truths) {
    var right = new double[answers.size()];
    Arrays.setAll(right, i -> right(answers.get(i), truths.get(i)) ? 1 : 0);
    return List.of(Figure.mean(Figure.ACCURACY, right));
  }
}
