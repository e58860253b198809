package org.meteora.eval.sweep;

import static org.meteora.eval.report.HtmlPage.element;
import static org.meteora.io.Texts.escapeHtml;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TreeMap;
import org.meteora.eval.Answer;
import org.meteora.eval.EvalTask;
import org.meteora.eval.Scores;
import org.meteora.eval.report.HtmlPage;
import org.meteora.eval.statistics.Figure;
import org.meteora.eval.statistics.Interval;
import org.meteora.io.Texts;

/** The scores of a sweep's points: a table for the terminal, and a page of heat maps. */
public final class SweepReport {
  private static final int CELL_WIDTH = 96;
  private static final int CELL_HEIGHT = 44;
  private static final int LEFT = 200;
  private static final int TOP = 40;

  private final String task;
  private final Sweep sweep;
  private final Map<Sweep.Point, Map<String, Value>> scores = new LinkedHashMap<>();

  /**
   * @param interval null for a mean over the parts of a composite task
   */
  private record Value(double score, Interval interval) {}

  public SweepReport(String task, Sweep sweep) {
    this.task = task;
    this.sweep = sweep;
  }

  /** Takes a point's answers in: of a composite task, its counts and its parts' mean scores. */
  public void add(Sweep.Point point, EvalTask evaluated, List<Answer> answers, Scores scored) {
    var kept = answers.stream().filter(answer -> !answer.skipped()).toList();
    var figures =
        evaluated.figures(
            kept.stream().map(Answer::answer).toList(), kept.stream().map(Answer::truth).toList());
    var values = new LinkedHashMap<String, Value>();
    for (var figure : figures.get(evaluated.name())) {
      if (!Double.isNaN(figure.score())) {
        values.put(
            figure.name(),
            new Value(figure.score(), scored.intervals().get(evaluated.name()).get(figure.name())));
      }
    }
    var parts = new TreeMap<String, List<Double>>();
    for (var part : evaluated.parts()) {
      for (Figure figure : figures.get(part)) {
        if (!Double.isNaN(figure.score())) {
          parts
              .computeIfAbsent("mean " + figure.name(), k -> new ArrayList<>())
              .add(figure.score());
        }
      }
    }
    parts.forEach(
        (name, each) ->
            values.put(
                name,
                new Value(
                    each.stream().mapToDouble(Double::doubleValue).average().orElseThrow(), null)));
    scores.put(point, values);
  }

  private Iterable<String> names() {
    var names = new LinkedHashSet<String>();
    scores.values().forEach(each -> names.addAll(each.keySet()));
    return names;
  }

  private static String number(String score, double value) {
    return String.format(Locale.ROOT, score.contains("BLEU") ? "%.2f" : "%.3f", value);
  }

  /** One line a point. */
  public String table() {
    var rows = new ArrayList<List<String>>();
    var header = new ArrayList<>(sweep.keys().keySet());
    names().forEach(header::add);
    rows.add(header);
    scores.forEach(
        (point, values) -> {
          var row = new ArrayList<>(point.values().values());
          for (var name : names()) {
            var value = values.get(name);
            row.add(
                value == null
                    ? "–"
                    : value.interval() == null
                        ? number(name, value.score())
                        : "%s (%s to %s)"
                            .formatted(
                                number(name, value.score()),
                                number(name, value.interval().low()),
                                number(name, value.interval().high())));
          }
          rows.add(row);
        });
    return task + ": scores, with 95 % intervals\n" + Texts.aligned(rows);
  }

  /**
   * One page that needs nothing else: a heat map of each score, the last key across, the one before
   * it down, a map for each combination of the others.
   */
  public String html() {
    var html = new StringBuilder();
    var keys = new ArrayList<>(sweep.keys().keySet());
    var across = keys.getLast();
    var down = keys.size() > 1 ? keys.get(keys.size() - 2) : null;
    for (var name : names()) {
      html.append(element("h2", name));
      var maps = new LinkedHashMap<Map<String, String>, List<Sweep.Point>>();
      for (var point : sweep.points()) {
        var others = new LinkedHashMap<>(point.values());
        others.remove(across);
        others.remove(down);
        maps.computeIfAbsent(others, k -> new ArrayList<>()).add(point);
      }
      maps.forEach(
          (others, points) -> {
            if (!others.isEmpty()) {
              html.append(element("h3", new Sweep.Point(others).name()));
            }
            map(html, name, points, across, down);
          });
    }
    return HtmlPage.of(task, html);
  }

  private void map(
      StringBuilder html, String name, List<Sweep.Point> points, String across, String down) {
    var columns = sweep.keys().get(across);
    var rows = down == null ? List.of("") : sweep.keys().get(down);
    var all =
        scores.values().stream()
            .filter(each -> each.containsKey(name))
            .mapToDouble(each -> each.get(name).score())
            .summaryStatistics();
    int width = LEFT + columns.size() * CELL_WIDTH;
    int height = TOP + rows.size() * CELL_HEIGHT;
    html.append(
        "<svg viewBox=\"0 0 %1$d %2$d\" width=\"%1$d\" role=\"img\" aria-label=\"%3$s\">\n"
            .formatted(width, height, escapeHtml(name)));
    html.append(label(LEFT - 10, 15, "end", across));
    for (int c = 0; c < columns.size(); c++) {
      html.append(label(LEFT + c * CELL_WIDTH + CELL_WIDTH / 2, 15, "middle", columns.get(c)));
    }
    for (int r = 0; r < rows.size(); r++) {
      int y = TOP - 16 + r * CELL_HEIGHT;
      if (down != null) {
        html.append(label(LEFT - 10, y + CELL_HEIGHT / 2, "end", down + " " + rows.get(r)));
      }
      for (int c = 0; c < columns.size(); c++) {
        var value = value(points, name, across, columns.get(c), down, rows.get(r));
        double share =
            value == null || all.getMax() == all.getMin()
                ? 0.5
                : (value.score() - all.getMin()) / (all.getMax() - all.getMin());
        html.append(
            String.format(
                Locale.ROOT,
                "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"#4477aa\""
                    + " fill-opacity=\"%.3f\"><title>%s</title></rect>%n",
                LEFT + c * CELL_WIDTH + 1,
                y + 1,
                CELL_WIDTH - 2,
                CELL_HEIGHT - 2,
                value == null ? 0 : 0.1 + 0.6 * share,
                value == null || value.interval() == null
                    ? ""
                    : "%.4f to %.4f".formatted(value.interval().low(), value.interval().high())));
        html.append(
            label(
                LEFT + c * CELL_WIDTH + CELL_WIDTH / 2,
                y + CELL_HEIGHT / 2 + 5,
                "middle",
                value == null ? "–" : number(name, value.score())));
      }
    }
    html.append("</svg>\n");
  }

  private Value value(
      List<Sweep.Point> points,
      String name,
      String across,
      String column,
      String down,
      String row) {
    return points.stream()
        .filter(point -> point.values().get(across).equals(column))
        .filter(point -> down == null || point.values().get(down).equals(row))
        .filter(scores::containsKey)
        .map(point -> scores.get(point).get(name))
        .filter(java.util.Objects::nonNull)
        .findFirst()
        .orElse(null);
  }

  private static String label(int x, int y, String anchor, String text) {
    return String.format(
        Locale.ROOT,
        "<text x=\"%d\" y=\"%d\" text-anchor=\"%s\">%s</text>\n",
        x,
        y,
        anchor,
        escapeHtml(text));
  }
}
