package org.meteora.eval.metric;

import com.fasterxml.jackson.annotation.JsonProperty;
import java.math.BigDecimal;
import java.math.RoundingMode;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Collectors;

/**
 * A BLEU score and what it is made of.
 *
 * @param score 0…100
 * @param precisions of 1- to 4-grams, 0…100, smoothed
 * @param brevityPenalty 0…1
 * @param hypothesisLength tokens of the answers
 * @param referenceLength tokens of the references closest in length
 */
public record BleuScore(
    double score,
    List<Double> precisions,
    @JsonProperty("brevity_penalty") double brevityPenalty,
    @JsonProperty("hypothesis_length") int hypothesisLength,
    @JsonProperty("reference_length") int referenceLength) {

  static final int ORDER = 4;

  /** Where the n-grams of the answer that are in its references lie in the statistics. */
  static final int MATCHES = 0;

  /** The answer's n-grams. */
  static final int TOTALS = MATCHES + ORDER;

  static final int HYPOTHESIS_LENGTH = TOTALS + ORDER;
  static final int REFERENCE_LENGTH = HYPOTHESIS_LENGTH + 1;

  /** Answers. */
  static final int COUNT = REFERENCE_LENGTH + 1;

  /** Numbers that BLEU is a function of; those of several answers are summed. */
  static final int STATISTICS = COUNT + 1;

  /**
   * The formula: the brevity penalty times the geometric mean of the n-gram precisions, where the
   * i-th precision of zero counts as 1/2^i of a match ("exp" smoothing).
   *
   * @param statistics whole numbers: matches and totals for n = 1…4, and both lengths
   * @param effectiveOrder leave out orders for which the answer is too short
   */
  static BleuScore of(double[] statistics, boolean effectiveOrder) {
    var matches = Arrays.copyOfRange(statistics, MATCHES, MATCHES + ORDER);
    var totals = Arrays.copyOfRange(statistics, TOTALS, TOTALS + ORDER);
    int hypothesisLength = (int) statistics[HYPOTHESIS_LENGTH];
    int referenceLength = (int) statistics[REFERENCE_LENGTH];
    double penalty = 1;
    if (hypothesisLength < referenceLength) {
      penalty =
          hypothesisLength > 0 ? Math.exp(1 - (double) referenceLength / hypothesisLength) : 0;
    }
    var precisions = new Double[ORDER];
    Arrays.fill(precisions, 0.0);
    double score = 0;
    if (Arrays.stream(matches).anyMatch(m -> m > 0)) {
      int present = (int) Arrays.stream(totals).takeWhile(total -> total > 0).count();
      double smoothing = 1;
      for (int n = 0; n < present; n++) {
        if (matches[n] == 0) {
          smoothing *= 2;
          precisions[n] = 100 / (smoothing * totals[n]);
        } else {
          precisions[n] = 100.0 * matches[n] / totals[n];
        }
      }
      int order = effectiveOrder ? present : ORDER;
      double logarithms = 0;
      for (int n = 0; n < order; n++) {
        logarithms += Math.log(precisions[n]);
      }
      score = penalty * Math.exp(logarithms / order);
    }
    return new BleuScore(score, List.of(precisions), penalty, hypothesisLength, referenceLength);
  }

  /** The line sacreBLEU prints. */
  @JsonProperty("text")
  public String text() {
    double ratio = referenceLength == 0 ? 0 : (double) hypothesisLength / referenceLength;
    return "BLEU = %s %s (BP = %s ratio = %s hyp_len = %d ref_len = %d)"
        .formatted(
            fixed(score, 2),
            precisions.stream().map(p -> fixed(p, 1)).collect(Collectors.joining("/")),
            fixed(brevityPenalty, 3),
            fixed(ratio, 3),
            hypothesisLength,
            referenceLength);
  }

  private static String fixed(double value, int digits) {
    return new BigDecimal(value).setScale(digits, RoundingMode.HALF_EVEN).toPlainString();
  }
}
