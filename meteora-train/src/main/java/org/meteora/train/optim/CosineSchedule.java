package org.meteora.train.optim;

/**
 * The learning rate: a linear warm-up, then half a cosine down to zero.
 *
 * @param warmupSteps steps of the warm-up; its last one has the peak
 * @param totalSteps all steps, warm-up included
 */
public record CosineSchedule(double peak, long warmupSteps, long totalSteps) {
  /** The schedule whose warm-up takes a share of the steps, rounded up. */
  public static CosineSchedule of(double peak, double warmupRatio, long totalSteps) {
    return new CosineSchedule(peak, (long) Math.ceil(warmupRatio * totalSteps), totalSteps);
  }

  /** The rate of a step, counted from 0. */
  public double rate(long step) {
    if (step < warmupSteps) {
      return peak * (step + 1) / warmupSteps;
    }
    double progress = (double) (step - warmupSteps) / Math.max(1, totalSteps - warmupSteps);
    return peak * 0.5 * (1 + Math.cos(Math.PI * Math.min(1, progress)));
  }
}
