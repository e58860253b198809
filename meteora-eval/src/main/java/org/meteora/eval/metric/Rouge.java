package org.meteora.eval.metric;

import java.util.ArrayList;
import java.util.Collections;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.meteora.data.PythonText;
import org.meteora.eval.statistics.Figure;

/**
 * ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) with the peculiarities of the Python package {@code
 * rouge} 1.0.1, whose figures papers quote: a text is cut into sentences at every full stop,
 * n-grams are sets (a repetition counts once), ROUGE-L is of the union of the sentences' longest
 * common subsequences, f has 1e-8 in its denominator. The figures are means over the non-empty
 * answers; null when all are empty. An answer or truth of nothing but full stops scores 0, where
 * the package stops with an error.
 */
public final class Rouge implements Metric {
  private static final List<String> NAMES = List.of("rouge-1", "rouge-2", "rouge-l");

  @Override
  public Map<String, Object> score(List<String> answers, List<String> truths) {
    var pairs = pairs(answers, truths).filter(Objects::nonNull).toList();
    if (pairs.isEmpty()) {
      return Collections.singletonMap("ROUGE", null);
    }
    var sum = new LinkedHashMap<String, RougeScore>();
    pairs.forEach(pair -> pair.forEach((name, each) -> sum.merge(name, each, RougeScore::plus)));
    sum.replaceAll((name, score) -> score.over(pairs.size()));
    return Map.of("ROUGE", sum);
  }

  /** The harmonic means f. */
  @Override
  public List<Figure> figures(List<String> answers, List<String> truths) {
    var pairs = pairs(answers, truths).toList();
    return NAMES.stream()
        .map(
            name ->
                Figure.mean(
                    name.toUpperCase(Locale.ROOT),
                    pairs.stream()
                        .mapToDouble(pair -> pair == null ? Double.NaN : pair.get(name).f())
                        .toArray()))
        .toList();
  }

  /** {@link #pair} of each sample; null where the answer is empty. */
  private static Stream<Map<String, RougeScore>> pairs(List<String> answers, List<String> truths) {
    return IntStream.range(0, answers.size())
        .mapToObj(i -> answers.get(i).isEmpty() ? null : pair(answers.get(i), truths.get(i)));
  }

  /** {@code rouge-1}, {@code rouge-2} and {@code rouge-l} of one answer. */
  public static Map<String, RougeScore> pair(String answer, String truth) {
    var hypothesis = sentences(answer);
    var reference = sentences(truth);
    var result = new LinkedHashMap<String, RougeScore>();
    result.put("rouge-1", ngrams(hypothesis, reference, 1));
    result.put("rouge-2", ngrams(hypothesis, reference, 2));
    result.put("rouge-l", subsequences(hypothesis, reference));
    return result;
  }

  /** A sentence of white space alone is kept: it has one word, the empty one. */
  private static List<List<String>> sentences(String text) {
    var result = new ArrayList<List<String>>();
    for (var piece : text.split("\\.", -1)) {
      if (!piece.isEmpty()) {
        var words = PythonText.words(piece);
        result.add(words.isEmpty() ? List.of("") : words);
      }
    }
    return result;
  }

  private static RougeScore ngrams(
      List<List<String>> hypothesis, List<List<String>> reference, int n) {
    var given = ngrams(hypothesis, n);
    var expected = ngrams(reference, n);
    int common = (int) given.stream().filter(expected::contains).count();
    return RougeScore.of(common, expected.size(), given.size());
  }

  private static Set<List<String>> ngrams(List<List<String>> sentences, int n) {
    var words = sentences.stream().flatMap(List::stream).toList();
    var grams = new HashSet<List<String>>();
    for (int i = 0; i + n <= words.size(); i++) {
      grams.add(words.subList(i, i + n));
    }
    return grams;
  }

  private static RougeScore subsequences(
      List<List<String>> hypothesis, List<List<String>> reference) {
    var union = new HashSet<String>();
    for (var expected : reference) {
      for (var given : hypothesis) {
        addLongestCommonSubsequence(expected, given, union);
      }
    }
    return RougeScore.of(union.size(), ngrams(reference, 1).size(), ngrams(hypothesis, 1).size());
  }

  /** Adds the words of the longest common subsequence; of equals, the one that ends first in b. */
  private static void addLongestCommonSubsequence(
      List<String> a, List<String> b, Set<String> words) {
    var lengths = new int[a.size() + 1][b.size() + 1];
    for (int i = 1; i <= a.size(); i++) {
      for (int j = 1; j <= b.size(); j++) {
        lengths[i][j] =
            a.get(i - 1).equals(b.get(j - 1))
                ? lengths[i - 1][j - 1] + 1
                : Math.max(lengths[i - 1][j], lengths[i][j - 1]);
      }
    }
    for (int i = a.size(), j = b.size(); i > 0 && j > 0; ) {
      if (a.get(i - 1).equals(b.get(j - 1))) {
        words.add(a.get(i - 1));
        i--;
        j--;
      } else if (lengths[i - 1][j] > lengths[i][j - 1]) {
        i--;
      } else {
        j--;
      }
    }
  }
}
