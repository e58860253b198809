package org.meteora.eval.metric;

import java.util.Arrays;
import java.util.Comparator;
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
        "BLEU", none ? null : score(hypotheses, references.stream().map(List::of).toList(), false));
    result.put(
        "bleu_as_published",
        none ? null : score(hypotheses.subList(0, 1), List.of(references), false));
    return result;
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

  /** Of each hypothesis and its references, one or more. */
  private static BleuScore score(
      List<String> hypotheses, List<List<String>> references, boolean effectiveOrder) {
    var rows = new double[hypotheses.size()][];
    Arrays.setAll(rows, i -> statistics(hypotheses.get(i), references.get(i)));
    return BleuScore.of(Figure.sum(rows), effectiveOrder);
  }

  /** What {@link BleuScore#of} needs of one answer. */
  private static double[] statistics(String hypothesis, List<String> references) {
    var result = new double[BleuScore.STATISTICS];
    var tokens = tokens(hypothesis);
    var expected = references.stream().map(Bleu::tokens).toList();
    var largest = new HashMap<List<String>, Integer>();
    for (var each : expected) {
      counts(each).forEach((gram, count) -> largest.merge(gram, count, Math::max));
    }
    counts(tokens)
        .forEach(
            (gram, count) -> {
              result[BleuScore.MATCHES + gram.size() - 1] +=
                  Math.min(count, largest.getOrDefault(gram, 0));
              result[BleuScore.TOTALS + gram.size() - 1] += count;
            });
    result[BleuScore.HYPOTHESIS_LENGTH] = tokens.size();
    result[BleuScore.REFERENCE_LENGTH] =
        expected.stream()
            .map(List::size)
            .min(
                Comparator.<Integer>comparingInt(length -> Math.abs(length - tokens.size()))
                    .thenComparing(Comparator.naturalOrder()))
            .orElse(0);
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
