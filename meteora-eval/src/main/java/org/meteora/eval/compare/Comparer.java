package org.meteora.eval.compare;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.function.Function;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.meteora.UserException;
import org.meteora.eval.Answer;
import org.meteora.eval.EvalTask;
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
   * @param arguments files or folders of results, each may be preceded by {@code LABEL=}; the first
   *     system is what the others are compared with
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
    var maps = each(runs, Comparer::byQuestion);
    var common = new LinkedHashSet<>(first(maps).keySet());
    present(maps).forEach(map -> common.retainAll(map.keySet()));
    int before = common.size();
    common.removeIf(question -> present(maps).anyMatch(map -> map.get(question).skipped()));
    warnOfSamples(evaluation, runs, before, common.size());
    if (common.isEmpty()) {
      throw new UserException(
          "%s: these results have no sample in common: %s",
          evaluation, String.join(", ", present(runs).map(run -> run.file().toString()).toList()));
    }
    score(first(runs).task(), each(maps, map -> common.stream().map(map::get).toList()));
  }

  /** Of lists with an entry a column, null where there is no run: those that are there. */
  static <T> Stream<T> present(List<T> columns) {
    return columns.stream().filter(Objects::nonNull);
  }

  private static <T> T first(List<T> columns) {
    return present(columns).findFirst().orElseThrow();
  }

  static <T, R> List<R> each(List<T> columns, Function<T, R> convert) {
    return columns.stream().map(each -> each == null ? null : convert.apply(each)).toList();
  }

  private void warnOfSamples(
      String evaluation, List<SavedRun> runs, int common, int withoutSkipped) {
    if (present(runs).anyMatch(run -> run.answers().size() != common)) {
      var sizes = Columns.listed(columns, each(runs, run -> run.answers().size()));
      warnings.add(
          "%s: the runs have other samples (%s); compared are the %d that all have"
              .formatted(evaluation, sizes, withoutSkipped));
    } else if (withoutSkipped < common) {
      warnings.add(
          "%s: %d samples left out that one of the runs skipped"
              .formatted(evaluation, common - withoutSkipped));
    }
  }

  /** Scores answers to the common samples, a list a column. */
  private void score(EvalTask task, List<List<Answer>> answers) {
    var figures = each(answers, list -> task.figures(texts(list), truths(list)));
    var draws = Bootstrap.seeded(seed, task.name());
    for (var part : first(figures).keySet()) {
      // all columns' figures of this part on the same draws
      var all = present(figures).flatMap(each -> each.get(part).stream()).toList();
      var resampled = Bootstrap.scores(all, resamples, draws);
      for (int s = 0; s < first(figures).get(part).size(); s++) {
        int score = s;
        var ofColumns = each(figures, each -> each.get(part).get(score));
        var drawn = each(ofColumns, figure -> resampled[all.indexOf(figure)]);
        var cells =
            IntStream.range(0, columns.size()).mapToObj(c -> cell(ofColumns, drawn, c)).toList();
        add(task, part, first(ofColumns).name(), first(answers).size(), cells, drawn);
      }
      if (published) {
        publishedBleu(task, part, answers);
      }
    }
    samples.add(differences(task.name(), answers, figures));
  }

  private static List<String> texts(List<Answer> answers) {
    return answers.stream().map(Answer::answer).toList();
  }

  private static List<String> truths(List<Answer> answers) {
    return answers.stream().map(Answer::truth).toList();
  }

  private void add(
      EvalTask task,
      String part,
      String score,
      int count,
      List<Comparison.Cell> cells,
      List<double[]> resampled) {
    List<Double> papers =
        published && task.name().equals(Published.TASK)
            ? Published.ALL.stream()
                .map(paper -> paper.scores().getOrDefault(part, Map.of()).get(score))
                .toList()
            : List.of();
    var row = new Comparison.Row(task.name(), part, score, count, cells, papers);
    rows.add(new Means.Scored(row, !task.parts().isEmpty(), resampled));
  }

  private static Comparison.Cell cell(List<Figure> figures, List<double[]> resampled, int column) {
    var figure = figures.get(column);
    if (figure == null) {
      return null;
    }
    if (Double.isNaN(figure.score())) {
      return new Comparison.Cell(null, null, null);
    }
    var first = figures.getFirst();
    boolean changed = column > 0 && first != null && !Double.isNaN(first.score());
    var its = resampled.get(column);
    return new Comparison.Cell(
        figure.score(),
        Interval.percentile(its),
        changed ? change(first, figure, minus(its, resampled.getFirst())) : null);
  }

  private static Comparison.Change change(Figure first, Figure other, double[] differences) {
    boolean judged = first.isAccuracy();
    int onlyFirst = better(first, other);
    int onlyThis = better(other, first);
    return new Comparison.Change(
        other.score() - first.score(),
        Interval.percentile(differences),
        judged ? McNemar.exact(onlyFirst, onlyThis) : null,
        judged ? onlyFirst : null,
        judged ? onlyThis : null,
        null);
  }

  private static int better(Figure one, Figure other) {
    return (int)
        IntStream.range(0, one.rows().length)
            .filter(i -> one.rows()[i][0] > other.rows()[i][0])
            .count();
  }

  static double[] minus(double[] a, double[] b) {
    var result = new double[a.length];
    Arrays.setAll(result, i -> a[i] - b[i]);
    return result;
  }

  /** The original's BLEU of one answer: no interval, it is no statistic of the samples. */
  private void publishedBleu(EvalTask task, String part, List<List<Answer>> answers) {
    var cells =
        each(
            answers,
            list -> {
              var metrics = task.score(texts(list), truths(list));
              var own = task.parts().isEmpty() ? metrics : metrics.get(part);
              var bleu = own instanceof Map<?, ?> map ? map.get("bleu_as_published") : null;
              return new Comparison.Cell(
                  bleu instanceof BleuScore score ? score.score() : null, null, null);
            });
    if (present(cells).anyMatch(cell -> cell.score() != null)) {
      add(task, part, Published.BLEU, first(answers).size(), cells, List.of());
    }
  }

  private static Comparison.Samples differences(
      String evaluation, List<List<Answer>> answers, List<Map<String, List<Figure>>> figures) {
    var parts = first(figures);
    boolean judged = parts.values().stream().flatMap(List::stream).anyMatch(Figure::isAccuracy);
    var different = new ArrayList<Comparison.Difference>();
    for (int i = 0; i < first(answers).size(); i++) {
      int sample = i;
      var given = each(answers, list -> list.get(sample).answer());
      var right = new LinkedHashMap<String, List<Boolean>>();
      for (var part : parts.keySet()) {
        var verdicts = each(figures, each -> isRight(each.get(part), sample));
        if (differ(verdicts)) {
          right.put(part, verdicts);
        }
      }
      if (judged ? !right.isEmpty() : differ(given)) {
        var answer = first(answers).get(i);
        different.add(
            new Comparison.Difference(
                answer.index(), answer.prompt(), answer.truth(), given, right));
      }
    }
    return new Comparison.Samples(evaluation, first(answers).size(), judged, different);
  }

  /** Null where nothing is right or wrong. */
  private static Boolean isRight(List<Figure> figures, int sample) {
    return figures.stream()
        .filter(Figure::isAccuracy)
        .findFirst()
        .map(figure -> figure.rows()[sample][0] == 1)
        .orElse(null);
  }

  static boolean differ(List<?> columns) {
    return present(columns).distinct().count() > 1;
  }
}
