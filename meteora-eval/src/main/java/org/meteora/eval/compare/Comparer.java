package org.meteora.eval.compare;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import org.meteora.UserException;
import org.meteora.eval.Answer;
import org.meteora.eval.metric.BleuScore;
import org.meteora.eval.statistics.Bootstrap;
import org.meteora.eval.statistics.Figure;
import org.meteora.eval.statistics.Interval;
import org.meteora.eval.statistics.McNemar;

/** Compares saved evaluations, sample by sample. */
public final class Comparer {
  private final List<Columns.Column> columns;
  private final int resamples;
  private final long seed;
  private final boolean published;
  private final List<String> warnings = new ArrayList<>();
  private final List<Means.Scored> rows = new ArrayList<>();
  private final List<Comparison.Samples> samples = new ArrayList<>();

  private Comparer(List<Columns.Column> columns, int resamples, long seed, boolean published) {
    this.columns = columns;
    this.resamples = resamples;
    this.seed = seed;
    this.published = published;
  }

  /**
   * Compares saved results.
   *
   * @param arguments files or folders of results, each may be preceded by {@code LABEL=}; the first
   *     system is what the others are compared with
   * @param resamples of the bootstrap
   * @param seed of the bootstrap
   * @param published with the paper's scores beside
   * @throws UserException when a result is missing or broken, or two have no sample in common
   */
  public static Comparison compare(
      List<String> arguments, int resamples, long seed, boolean published) {
    return new Comparer(Columns.of(arguments), resamples, seed, published).compare();
  }

  private Comparison compare() {
    var evaluations = new LinkedHashSet<String>();
    columns.forEach(column -> evaluations.addAll(column.runs().keySet()));
    var settings = new SettingsDifferences(columns);
    for (var evaluation : evaluations) {
      var runs = columns.stream().map(column -> column.runs().get(evaluation)).toList();
      evaluate(evaluation, runs);
      settings.add(evaluation, runs);
    }
    warnings.addAll(settings.warnings());
    if (published && !evaluations.contains(Published.TASK)) {
      warnings.add(
          "--published has scores of " + Published.TASK + " alone, and there is no result of it");
    }
    return new Comparison(
        columns.stream().map(Columns.Column::label).toList(),
        published ? Published.ALL.stream().map(Published::name).toList() : List.of(),
        resamples,
        seed,
        List.copyOf(warnings),
        settings.different(),
        rows.stream().map(Means.Scored::row).toList(),
        Means.of(rows, columns.size(), resamples),
        List.copyOf(samples));
  }

  /** What makes an answer the answer to the same question, in whatever order the data are. */
  private record Question(String prompt, String truth, int occurrence) {}

  private static Map<Question, Answer> byQuestion(SavedRun run) {
    var result = new LinkedHashMap<Question, Answer>();
    for (var answer : run.answers()) {
      int occurrence = 0;
      while (result.containsKey(new Question(answer.prompt(), answer.truth(), occurrence))) {
        occurrence++;
      }
      result.put(new Question(answer.prompt(), answer.truth(), occurrence), answer);
    }
    return result;
  }

  private void evaluate(String evaluation, List<SavedRun> runs) {
    var present = runs.stream().filter(Objects::nonNull).toList();
    var maps = present.stream().map(Comparer::byQuestion).toList();
    var common = new LinkedHashSet<>(maps.getFirst().keySet());
    maps.forEach(map -> common.retainAll(map.keySet()));
    int before = common.size();
    common.removeIf(question -> maps.stream().anyMatch(map -> map.get(question).skipped()));
    warnOfSamples(evaluation, runs, before, common.size());
    if (common.isEmpty()) {
      throw new UserException(
          evaluation
              + ": these results have no sample in common: "
              + String.join(", ", present.stream().map(run -> run.file().toString()).toList()));
    }
    var answers =
        new ArrayList<List<Answer>>(); // one list a column, of the common samples; null: no run
    int at = 0;
    for (var run : runs) {
      if (run == null) {
        answers.add(null);
        continue;
      }
      var map = maps.get(at++);
      answers.add(common.stream().map(map::get).toList());
    }
    score(evaluation, present.getFirst(), answers);
  }

  private void warnOfSamples(
      String evaluation, List<SavedRun> runs, int common, int withoutSkipped) {
    var sizes = new ArrayList<String>();
    boolean differ = false;
    for (int i = 0; i < runs.size(); i++) {
      if (runs.get(i) != null) {
        int size = runs.get(i).answers().size();
        differ |= size != common;
        sizes.add(columns.get(i).label() + " " + size);
      }
    }
    if (differ) {
      warnings.add(
          "%s: the runs have other samples (%s); compared are the %d that all have"
              .formatted(evaluation, String.join(", ", sizes), withoutSkipped));
    } else if (withoutSkipped < common) {
      warnings.add(
          "%s: %d samples left out that one of the runs skipped"
              .formatted(evaluation, common - withoutSkipped));
    }
  }

  private void score(String evaluation, SavedRun any, List<List<Answer>> answers) {
    var task = any.task();
    var figures = new ArrayList<Map<String, List<Figure>>>();
    for (var list : answers) {
      figures.add(list == null ? null : task.figures(texts(list), truths(list)));
    }
    var draws = Bootstrap.seeded(seed, evaluation);
    var first = figures.stream().filter(Objects::nonNull).findFirst().orElseThrow();
    for (var part : first.keySet()) {
      var scores = first.get(part);
      // all columns' figures of this part on the same draws
      var flat = new ArrayList<Figure>();
      figures.stream().filter(Objects::nonNull).forEach(each -> flat.addAll(each.get(part)));
      var resampled = Bootstrap.scores(flat, resamples, draws);
      for (int s = 0; s < scores.size(); s++) {
        var byColumn = new double[figures.size()][];
        var ofColumn = new Figure[figures.size()];
        int run = 0;
        for (int c = 0; c < byColumn.length; c++) {
          if (figures.get(c) != null) {
            ofColumn[c] = figures.get(c).get(part).get(s);
            byColumn[c] = resampled[run * scores.size() + s];
            run++;
          }
        }
        rows.add(row(any, part, ofColumn, byColumn));
      }
      if (published) {
        publishedBleu(any, part, answers);
      }
    }
    samples.add(differences(evaluation, answers, figures));
  }

  private static List<String> texts(List<Answer> answers) {
    return answers.stream().map(Answer::answer).toList();
  }

  private static List<String> truths(List<Answer> answers) {
    return answers.stream().map(Answer::truth).toList();
  }

  private Means.Scored row(SavedRun any, String part, Figure[] figures, double[][] resampled) {
    var name = Arrays.stream(figures).filter(Objects::nonNull).findFirst().orElseThrow().name();
    int count =
        Arrays.stream(figures).filter(Objects::nonNull).findFirst().orElseThrow().rows().length;
    var cells = new ArrayList<Comparison.Cell>();
    for (int c = 0; c < figures.length; c++) {
      if (figures[c] == null) {
        cells.add(null);
        continue;
      }
      double score = figures[c].score();
      if (Double.isNaN(score)) {
        cells.add(new Comparison.Cell(null, null, null));
        continue;
      }
      Comparison.Change change = null;
      if (c > 0 && figures[0] != null && !Double.isNaN(figures[0].score())) {
        change = change(figures[0], figures[c], resampled[0], resampled[c]);
      }
      cells.add(new Comparison.Cell(score, Interval.percentile(resampled[c]), change));
    }
    return new Means.Scored(
        new Comparison.Row(
            any.task().name(), part, name, count, cells, publishedScores(any, part, name)),
        !any.task().parts().isEmpty(),
        resampled);
  }

  private static Comparison.Change change(
      Figure first, Figure other, double[] firstResampled, double[] otherResampled) {
    Double p = null;
    Integer onlyFirst = null;
    Integer onlyThis = null;
    if (first.isAccuracy()) {
      int[] only = new int[2];
      for (int i = 0; i < first.rows().length; i++) {
        double difference = other.rows()[i][0] - first.rows()[i][0];
        only[0] += difference < 0 ? 1 : 0;
        only[1] += difference > 0 ? 1 : 0;
      }
      onlyFirst = only[0];
      onlyThis = only[1];
      p = McNemar.exact(only[0], only[1]);
    }
    return new Comparison.Change(
        other.score() - first.score(),
        Interval.percentile(minus(otherResampled, firstResampled)),
        p,
        onlyFirst,
        onlyThis,
        null);
  }

  static double[] minus(double[] a, double[] b) {
    var result = new double[a.length];
    Arrays.setAll(result, i -> a[i] - b[i]);
    return result;
  }

  private List<Double> publishedScores(SavedRun any, String part, String score) {
    if (!published || !any.task().name().equals(Published.TASK)) {
      return List.of();
    }
    var result = new ArrayList<Double>();
    Published.ALL.forEach(
        paper -> result.add(paper.scores().getOrDefault(part, Map.of()).get(score)));
    return result;
  }

  /** The original's BLEU of one answer: no interval, it is no statistic of the samples. */
  private void publishedBleu(SavedRun any, String part, List<List<Answer>> answers) {
    var cells = new ArrayList<Comparison.Cell>();
    boolean found = false;
    for (var list : answers) {
      if (list == null) {
        cells.add(null);
        continue;
      }
      var metrics = any.task().score(texts(list), truths(list));
      var own = any.task().parts().isEmpty() ? metrics : metrics.get(part);
      var bleu = own instanceof Map<?, ?> map ? map.get("bleu_as_published") : null;
      found |= bleu != null;
      cells.add(
          new Comparison.Cell(bleu instanceof BleuScore score ? score.score() : null, null, null));
    }
    if (found) {
      rows.add(
          new Means.Scored(
              new Comparison.Row(
                  any.task().name(),
                  part,
                  Published.BLEU,
                  answers.stream().filter(Objects::nonNull).findFirst().orElseThrow().size(),
                  cells,
                  publishedScores(any, part, Published.BLEU)),
              !any.task().parts().isEmpty(),
              new double[columns.size()][]));
    }
  }

  private static Comparison.Samples differences(
      String evaluation, List<List<Answer>> answers, List<Map<String, List<Figure>>> figures) {
    var first = answers.stream().filter(Objects::nonNull).findFirst().orElseThrow();
    var parts = figures.stream().filter(Objects::nonNull).findFirst().orElseThrow();
    boolean judged = parts.values().stream().flatMap(List::stream).anyMatch(Figure::isAccuracy);
    var different = new ArrayList<Comparison.Difference>();
    for (int i = 0; i < first.size(); i++) {
      int sample = i;
      var given = new ArrayList<String>();
      answers.forEach(list -> given.add(list == null ? null : list.get(sample).answer()));
      var right = new LinkedHashMap<String, List<Boolean>>();
      for (var part : parts.keySet()) {
        var verdicts = new ArrayList<Boolean>();
        for (var each : figures) {
          verdicts.add(
              each == null
                  ? null
                  : each.get(part).stream()
                      .filter(Figure::isAccuracy)
                      .findFirst()
                      .map(figure -> figure.rows()[sample][0] == 1)
                      .orElse(null));
        }
        if (verdicts.stream().filter(Objects::nonNull).distinct().count() > 1) {
          right.put(part, verdicts);
        }
      }
      boolean differs =
          judged
              ? !right.isEmpty()
              : given.stream().filter(Objects::nonNull).distinct().count() > 1;
      if (differs) {
        var answer = first.get(i);
        different.add(
            new Comparison.Difference(
                answer.index(), answer.prompt(), answer.truth(), given, right));
      }
    }
    return new Comparison.Samples(evaluation, first.size(), judged, different);
  }
}
