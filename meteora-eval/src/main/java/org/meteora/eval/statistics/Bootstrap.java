package org.meteora.eval.statistics;

import java.util.List;
import java.util.SplittableRandom;
import java.util.stream.IntStream;

/**
 * The bootstrap (Efron 1979; for machine translation's corpus scores, Koehn 2004): scores of many
 * sets of samples, each drawn with replacement from the samples there are. Scores of two systems on
 * the same draws are paired: their differences are free of what makes samples easy or hard.
 */
public final class Bootstrap {
  /** Resamples of every interval that is saved or shown. */
  public static final int RESAMPLES = 10_000;

  /** Of the draws, unless the user gives another. */
  public static final long SEED = 42;

  private Bootstrap() {}

  /** Which samples a resample takes. */
  @FunctionalInterface
  public interface Draws {
    /**
     * Fills in the samples of one resample.
     *
     * @param resample its number, from 0
     * @param samples gets as many indices as there are samples
     */
    void fill(int resample, int[] samples);
  }

  /**
   * Draws that depend on the seed, the task and the resample's number alone; those of two tasks are
   * independent of each other, as a mean over tasks needs them.
   */
  public static Draws seeded(long seed, String task) {
    long mixed = (seed * 31 + task.hashCode()) * 0xD1342543DE82EF95L;
    return (resample, samples) -> {
      var random = new SplittableRandom(mixed + resample);
      for (int i = 0; i < samples.length; i++) {
        samples[i] = random.nextInt(samples.length);
      }
    };
  }

  /**
   * Scores of resamples, all figures on the same draws.
   *
   * @param figures of the same samples in the same order, at least one sample
   * @return {@code (figures, resamples)}; NaN where a resample has nothing to score
   */
  public static double[][] scores(List<Figure> figures, int resamples, Draws draws) {
    var result = new double[figures.size()][resamples];
    if (figures.isEmpty()) {
      return result;
    }
    int count = figures.getFirst().rows().length;
    IntStream.range(0, resamples)
        .parallel()
        .forEach(
            resample -> {
              var samples = new int[count];
              draws.fill(resample, samples);
              for (int f = 0; f < result.length; f++) {
                var figure = figures.get(f);
                result[f][resample] = figure.value().applyAsDouble(sum(figure.rows(), samples));
              }
            });
    return result;
  }

  private static double[] sum(double[][] rows, int[] samples) {
    var sum = new double[rows[0].length];
    for (int sample : samples) {
      var row = rows[sample];
      for (int i = 0; i < sum.length; i++) {
        sum[i] += row[i];
      }
    }
    return sum;
  }
}
