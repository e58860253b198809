package org.meteora.eval.statistics;

import java.util.Arrays;
import java.util.Locale;

/** Where a score lies with 95 % confidence. */
public record Interval(double low, double high) {
  /** How sure an interval is. */
  public static final double LEVEL = 0.95;

  /**
   * The middle 95 % of resampled scores: their 2.5th and 97.5th percentiles, with linear
   * interpolation between neighbours.
   *
   * @param resampled scores in any order; NaN where a resample had nothing to score, left out
   * @return NaN at both ends when nothing is left
   */
  public static Interval percentile(double[] resampled) {
    var sorted = Arrays.stream(resampled).filter(value -> !Double.isNaN(value)).sorted().toArray();
    return new Interval(at(sorted, (1 - LEVEL) / 2), at(sorted, (1 + LEVEL) / 2));
  }

  private static double at(double[] sorted, double quantile) {
    if (sorted.length == 0) {
      return Double.NaN;
    }
    double position = quantile * (sorted.length - 1);
    int below = (int) Math.floor(position);
    int above = Math.min(below + 1, sorted.length - 1);
    return sorted[below] + (position - below) * (sorted[above] - sorted[below]);
  }

  /**
   * {@code 0.25 to 0.5}.
   *
   * @param number the format of each end: {@code %.2f}
   */
  public String text(String number) {
    return String.format(Locale.ROOT, number + " to " + number, low, high);
  }

  /** Whether a value lies inside, ends included. */
  public boolean contains(double value) {
    return low <= value && value <= high;
  }
}
