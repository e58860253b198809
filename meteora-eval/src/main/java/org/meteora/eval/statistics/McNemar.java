package org.meteora.eval.statistics;

/** McNemar's exact test (1947): do two systems answer different shares of the samples right? */
public final class McNemar {
  private McNemar() {}

  /**
   * The two-sided p-value: were each sample on which the two disagree as likely to go to either,
   * how likely would a division at least this uneven be?
   *
   * @param onlyFirst samples that the first system alone answers right
   * @param onlySecond samples that the second system alone answers right
   */
  public static double exact(int onlyFirst, int onlySecond) {
    int n = onlyFirst + onlySecond;
    int smaller = Math.min(onlyFirst, onlySecond);
    if (2 * smaller == n) {
      return 1; // both tails meet in the middle
    }
    // the largest term of the tail, C(n, smaller) / 2^n, by its logarithm
    double logarithm = -n * Math.log(2);
    for (int i = 1; i <= smaller; i++) {
      logarithm += Math.log((double) (n - smaller + i) / i);
    }
    double term = 1;
    double tail = 1;
    for (int k = smaller; k > 0 && term > 0; k--) {
      term *= (double) k / (n - k + 1);
      tail += term;
    }
    return Math.min(1, 2 * tail * Math.exp(logarithm));
  }
}
