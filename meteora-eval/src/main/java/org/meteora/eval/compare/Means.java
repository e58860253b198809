package org.meteora.eval.compare;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.function.Function;
import java.util.stream.Collector;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.meteora.eval.statistics.Interval;

/** Means over scores of a comparison. */
final class Means {
  /**
   * A row and its resampled scores.
   *
   * @param resampled one array a column; null where there is no score
   */
  record Scored(Comparison.Row row, boolean composite, List<double[]> resampled) {
    private boolean counts() {
      return !row.score().equals(Published.BLEU)
          && !(composite && row.task().equals(row.evaluation()));
    }

    private String group() {
      return composite ? row.evaluation() : "single tasks";
    }
  }

  private Means() {}

  /**
   * Means over single tasks, and over the parts of each composite task.
   *
   * @param columns systems that are compared
   */
  static List<Comparison.Row> of(List<Scored> rows, int columns, int resamples) {
    var groups =
        rows.stream()
            .filter(Scored::counts)
            .collect(
                inOrder(Scored::group, inOrder(each -> each.row().score(), Collectors.toList())));
    return groups.values().stream()
        .flatMap(scores -> scores.values().stream())
        .map(all -> mean(all, columns, resamples))
        .filter(Objects::nonNull)
        .toList();
  }

  private static <T, D> Collector<T, ?, Map<String, D>> inOrder(
      Function<T, String> name, Collector<T, ?, D> each) {
    return Collectors.groupingBy(name, LinkedHashMap::new, each);
  }

  /** Of rows of one score and group; null where fewer than two tasks can be compared. */
  private static Comparison.Row mean(List<Scored> all, int columns, int resamples) {
    // over the tasks that all have; a system that leaves fewer than two of them has no mean
    var taking = new ArrayList<>(IntStream.range(0, columns).boxed().toList());
    taking.removeIf(c -> all.stream().noneMatch(scored -> has(scored, c)));
    var shared = shared(all, taking);
    while (shared.size() < 2 && taking.size() > 1) {
      taking.remove(
          taking.stream()
              .min(Comparator.comparingLong(c -> all.stream().filter(s -> has(s, c)).count()))
              .orElseThrow());
      shared = shared(all, taking);
    }
    if (shared.size() < 2) {
      return null;
    }
    var cells = new ArrayList<Comparison.Cell>();
    double[] first = null;
    double firstMean = 0;
    for (int c = 0; c < columns; c++) {
      if (!taking.contains(c)) {
        cells.add(null);
        continue;
      }
      double mean = 0;
      var resampled = new double[resamples];
      for (var scored : shared) {
        mean += scored.row().cells().get(c).score() / shared.size();
        for (int i = 0; i < resamples; i++) {
          resampled[i] += scored.resampled().get(c)[i] / shared.size();
        }
      }
      Comparison.Change change = null;
      if (c == 0) {
        first = resampled;
        firstMean = mean;
      } else if (first != null) {
        change =
            new Comparison.Change(
                mean - firstMean,
                Interval.percentile(Comparer.minus(resampled, first)),
                null,
                null,
                null,
                share(mean, firstMean, resampled, first));
      }
      cells.add(new Comparison.Cell(mean, Interval.percentile(resampled), change));
    }
    var any = all.getFirst();
    return new Comparison.Row(
        any.group(), "mean", any.row().score(), shared.size(), cells, publishedMeans(shared));
  }

  private static Comparison.Share share(
      double mean, double firstMean, double[] resampled, double[] first) {
    if (Arrays.stream(first).anyMatch(each -> each <= 0)) {
      return null;
    }
    var shares = new double[first.length];
    Arrays.setAll(shares, i -> resampled[i] / first[i]);
    return new Comparison.Share(mean / firstMean, Interval.percentile(shares));
  }

  private static List<Scored> shared(List<Scored> rows, List<Integer> columns) {
    return rows.stream().filter(row -> columns.stream().allMatch(c -> has(row, c))).toList();
  }

  private static boolean has(Scored scored, int column) {
    var cell = scored.row().cells().get(column);
    return cell != null && cell.score() != null;
  }

  private static List<Double> publishedMeans(List<Scored> rows) {
    return IntStream.range(0, rows.getFirst().row().published().size())
        .mapToObj(paper -> rows.stream().map(each -> each.row().published().get(paper)).toList())
        .map(
            values ->
                values.contains(null)
                    ? null
                    : values.stream().mapToDouble(Double::doubleValue).average().orElseThrow())
        .toList();
  }
}
