package org.meteora.eval.metric;

/**
 * One ROUGE figure.
 *
 * @param r recall, 0…1
 * @param p precision
 * @param f their harmonic mean
 */
public record RougeScore(double r, double p, double f) {
  static RougeScore of(int common, int inReference, int inAnswer) {
    double p = inAnswer == 0 ? 0 : (double) common / inAnswer;
    double r = inReference == 0 ? 0 : (double) common / inReference;
    return new RougeScore(r, p, 2 * (p * r / (p + r + 1e-8)));
  }

  RougeScore plus(RougeScore other) {
    return new RougeScore(r + other.r, p + other.p, f + other.f);
  }

  RougeScore over(int count) {
    return new RougeScore(r / count, p / count, f / count);
  }
}
