package org.meteora.eval.statistics;

import java.util.Arrays;
import java.util.function.ToDoubleFunction;

/**
 * One score and what it is made of. The score of any choice of samples is a function of the sum of
 * their rows, so that it can be computed for many choices without reading an answer again: for a
 * share, rows of {right, 1}; for corpus BLEU, the n-gram counts and lengths.
 *
 * @param name as it is shown: {@code Accuracy}, {@code BLEU}, {@code ROUGE-L}, …
 * @param rows {@code (samples, statistics)}
 * @param value the score of a sum of rows; NaN when there is nothing to score
 */
public record Figure(String name, double[][] rows, ToDoubleFunction<double[]> value) {
  /** The name of every share of right answers, whichever rule says what is right. */
  public static final String ACCURACY = "Accuracy";

  /**
   * The mean over samples, some of which may not count.
   *
   * @param values one a sample; NaN: not counted
   */
  public static Figure mean(String name, double[] values) {
    var rows = new double[values.length][];
    for (int i = 0; i < values.length; i++) {
      rows[i] = Double.isNaN(values[i]) ? new double[2] : new double[] {values[i], 1};
    }
    return new Figure(name, rows, sum -> sum[1] == 0 ? Double.NaN : sum[0] / sum[1]);
  }

  /** The score of all samples; NaN when there is nothing to score. */
  public double score() {
    return rows.length == 0 ? Double.NaN : value.applyAsDouble(sum(rows));
  }

  /** The sum of one row or more. */
  public static double[] sum(double[][] rows) {
    var sum = new double[rows[0].length];
    for (var row : rows) {
      Arrays.setAll(sum, i -> sum[i] + row[i]);
    }
    return sum;
  }

  /** Whether a row's first number says, by 1 or 0, that the sample was answered right. */
  public boolean isAccuracy() {
    return name.equals(ACCURACY);
  }
}
