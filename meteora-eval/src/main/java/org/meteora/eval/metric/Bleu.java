package org.meteora.eval.metric;

import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Pattern;
import java.util.stream.IntStream;
import org.meteora.data.PythonText;
import org.meteora.eval.statistics.Figure;

/**
 * BLEU (Papineni et al. 2002) as sacreBLEU 2.6 computes it by default: mteval-13a tokens,
 * case-sensitive, exponential smoothing, n-grams up to 4. Empty answers are left out; when all are
 * empty the figures are null.
 *
 * <p>Two figures: {@code BLEU} over all answers, and {@code bleu_as_published}, which is what the
 * original evaluation reports: it hands over one list of references a sample where one list a
 * reference set is expected, so that only the first answer is scored, against the truths of all
 * samples at once.
 */
public final class Bleu implements Metric {
  /** Every ASCII sign but apostrophe, comma, hyphen and full stop stands alone. */
  private static final Pattern SIGN = Pattern.compile("([\\p{Punct}&&[^',\\-.]])");

  private static final Pattern POINT_AFTER_OTHER = Pattern.compile("([^0-9])([.,])");
  private static final Pattern POINT_BEFORE_OTHER = Pattern.compile("([.,])([^0-9])");
  private static final Pattern HYPHEN_AFTER_DIGIT = Pattern.compile("([0-9])(-)");

  @Override
  public Map<String, Object> score(List<String> answers, List<String> truths) {
    var given =
        IntStream.range(0, answers.size()).filter(i -> !answers.get(i).isEmpty()).boxed().toList();
    var hypotheses = given.stream().map(answers::get).toList();
    var references = given.stream().map(truths::get).toList();
    var result = new LinkedHashMap<String, Object>();
    boolean none = given.isEmpty();
    result.put(
        "BLEU", none ? null : corpus(hypotheses, references.stream().map(List::of).toList()));
    result.put(
        "bleu_as_published", none ? null : corpus(hypotheses.subList(0, 1), List.of(references)));
    return result;
  }

  /**
   * Corpus BLEU.
   *
   * @param references for each hypothesis one or more
   */
  public static BleuScore corpus(List<String> hypotheses, List<List<String>> references) {
    return score(hypotheses, references, false);
  }

  /** BLEU of one sentence: orders it is too short for are left out. */
  public static BleuScore sentence(String hypothesis, List<String> references) {
    return score(List.of(hypothesis), List.of(references), true);
  }

  /** Corpus BLEU of the answers that are not empty. */
  @Override
  public List<Figure> figures(List<String> answers, List<String> truths) {
    var rows = new double[answers.size()][];
    for (int i = 0; i < rows.length; i++) {
      rows[i] =
          answers.get(i).isEmpty()
              ? new double[BleuScore.STATISTICS]
              : statistics(answers.get(i), List.of(truths.get(i)));
    }
    return List.of(
        new Figure(
            "BLEU",
            rows,
            sum -> sum[BleuScore.COUNT] == 0 ? Double.NaN : BleuScore.of(sum, false).score()));
  }

  private static BleuScore score(
      List<String> hypotheses, List<List<String>> references, boolean effectiveOrder) {
    var sum = new double[BleuScore.STATISTICS];
    for (int i = 0; i < hypotheses.size(); i++) {
      var each = statistics(hypotheses.get(i), references.get(i));
      for (int s = 0; s < sum.length; s++) {
        sum[s] += each[s];
      }
    }
    return BleuScore.of(sum, effectiveOrder);
  }

  /** What {@link BleuScore#of} needs of one answer. */
  private static double[] statistics(String hypothesis, List<String> references) {
    var result = new double[BleuScore.STATISTICS];
    var tokens = tokens(hypothesis);
    var largest = new HashMap<List<String>, Integer>();
    int closest = -1;
    for (var reference : references) {
      var expected = tokens(reference);
      counts(expected).forEach((gram, count) -> largest.merge(gram, count, Math::max));
      int length = expected.size();
      int difference = Math.abs(length - tokens.size());
      int best = closest < 0 ? Integer.MAX_VALUE : Math.abs(closest - tokens.size());
      if (difference < best || difference == best && length < closest) {
        closest = length;
      }
    }
    counts(tokens)
        .forEach(
            (gram, count) -> {
              result[BleuScore.MATCHES + gram.size() - 1] +=
                  Math.min(count, largest.getOrDefault(gram, 0));
              result[BleuScore.TOTALS + gram.size() - 1] += count;
            });
    result[BleuScore.HYPOTHESIS_LENGTH] = tokens.size();
    result[BleuScore.REFERENCE_LENGTH] = Math.max(closest, 0);
    result[BleuScore.COUNT] = 1;
    return result;
  }

  private static Map<List<String>, Integer> counts(List<String> tokens) {
    var counts = new HashMap<List<String>, Integer>();
    for (int n = 1; n <= BleuScore.ORDER; n++) {
      for (int i = 0; i + n <= tokens.size(); i++) {
        counts.merge(tokens.subList(i, i + n), 1, Integer::sum);
      }
    }
    return counts;
  }

  /** The tokens that NIST's mteval script, version 13a, cuts Western text into. */
  static List<String> tokens(String text) {
    var line = text.stripTrailing().replace("<skipped>", "").replace("-\n", "").replace('\n', ' ');
    if (line.indexOf('&') >= 0) {
      line =
          line.replace("&quot;", "\"")
              .replace("&amp;", "&")
              .replace("&lt;", "<")
              .replace("&gt;", ">");
    }
    line = SIGN.matcher(" " + line + " ").replaceAll(" $1 ");
    line = POINT_AFTER_OTHER.matcher(line).replaceAll("$1 $2 ");
    line = POINT_BEFORE_OTHER.matcher(line).replaceAll(" $1 $2");
    line = HYPHEN_AFTER_DIGIT.matcher(line).replaceAll("$1 $2 ");
    return PythonText.words(line);
  }
}
