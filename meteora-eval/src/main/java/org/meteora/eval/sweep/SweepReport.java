package org.meteora.eval.sweep;

import static java.util.stream.Collectors.averagingDouble;
import static java.util.stream.Collectors.groupingBy;
import static org.meteora.eval.report.HtmlPage.element;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TreeMap;
import java.util.stream.Stream;
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

  /** A score; its interval is null for a mean over the parts of a composite task. */
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
    var intervals = scored.intervals().get(evaluated.name());
    scorable(figures.get(evaluated.name()))
        .forEach(
            each -> values.put(each.name(), new Value(each.score(), intervals.get(each.name()))));
    evaluated.parts().stream()
        .flatMap(part -> scorable(figures.get(part)))
        .collect(groupingBy(Figure::name, TreeMap::new, averagingDouble(Figure::score)))
        .forEach((name, mean) -> values.put("mean " + name, new Value(mean, null)));
    scores.put(point, values);
  }

  private static Stream<Figure> scorable(List<Figure> figures) {
    return figures.stream().filter(figure -> !Double.isNaN(figure.score()));
  }

  private List<String> names() {
    return scores.values().stream().flatMap(each -> each.keySet().stream()).distinct().toList();
  }

  private static String format(String score) {
    return score.contains("BLEU") ? "%.2f" : "%.3f";
  }

  private static String number(String score, Value value) {
    return value == null ? "–" : String.format(Locale.ROOT, format(score), value.score());
  }

  /** One line a point. */
  public String table() {
    var rows = new ArrayList<List<String>>();
    var header = new ArrayList<>(sweep.keys().keySet());
    header.addAll(names());
    rows.add(header);
    scores.forEach(
        (point, values) -> {
          var row = new ArrayList<>(point.values().values());
          for (var name : names()) {
            var value = values.get(name);
            boolean sure = value == null || value.interval() == null;
            row.add(
                number(name, value)
                    + (sure ? "" : " (" + value.interval().text(format(name)) + ")"));
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
    var maps = new LinkedHashSet<Map<String, String>>();
    for (var point : sweep.points()) {
      var others = new LinkedHashMap<>(point.values());
      others.remove(across);
      others.remove(down);
      maps.add(others);
    }
    for (var name : names()) {
      html.append(element("h2", name));
      for (var others : maps) {
        if (!others.isEmpty()) {
          html.append(element("h3", new Sweep.Point(others).name()));
        }
        map(html, name, others, across, down);
      }
    }
    return HtmlPage.of(task, html);
  }

  private void map(
      StringBuilder html, String name, Map<String, String> others, String across, String down) {
    var columns = sweep.keys().get(across);
    var rows = down == null ? List.of("") : sweep.keys().get(down);
    var all =
        scores.values().stream()
            .filter(each -> each.containsKey(name))
            .mapToDouble(each -> each.get(name).score())
            .summaryStatistics();
    double range = all.getMax() - all.getMin();
    int height = TOP + rows.size() * CELL_HEIGHT;
    HtmlPage.svg(html, LEFT + columns.size() * CELL_WIDTH, height, name);
    HtmlPage.text(html, LEFT - 10, 15, "end", across);
    for (int c = 0; c < columns.size(); c++) {
      int middle = LEFT + c * CELL_WIDTH + CELL_WIDTH / 2;
      HtmlPage.text(html, middle, 15, "middle", columns.get(c));
    }
    for (int r = 0; r < rows.size(); r++) {
      int y = TOP - 16 + r * CELL_HEIGHT;
      var point = new LinkedHashMap<>(others);
      if (down != null) {
        point.put(down, rows.get(r));
        HtmlPage.text(html, LEFT - 10, y + CELL_HEIGHT / 2, "end", down + " " + rows.get(r));
      }
      for (int c = 0; c < columns.size(); c++) {
        int x = LEFT + c * CELL_WIDTH;
        point.put(across, columns.get(c));
        var value = scores.getOrDefault(new Sweep.Point(point), Map.of()).get(name);
        double share = value == null || range == 0 ? 0.5 : (value.score() - all.getMin()) / range;
        HtmlPage.append(
            html,
            "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"#4477aa\""
                + " fill-opacity=\"%.3f\"><title>%s</title></rect>%n",
            x + 1,
            y + 1,
            CELL_WIDTH - 2,
            CELL_HEIGHT - 2,
            value == null ? 0 : 0.1 + 0.6 * share,
            value == null || value.interval() == null ? "" : value.interval().text("%.4f"));
        HtmlPage.text(
            html, x + CELL_WIDTH / 2, y + CELL_HEIGHT / 2 + 5, "middle", number(name, value));
      }
    }
    html.append("</svg>\n");
  }
}
