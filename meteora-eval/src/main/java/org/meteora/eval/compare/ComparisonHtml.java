package org.meteora.eval.compare;

import static org.meteora.eval.report.HtmlPage.element;
import static org.meteora.io.Texts.escapeHtml;

import java.util.ArrayList;
import java.util.DoubleSummaryStatistics;
import java.util.List;
import java.util.Locale;
import java.util.stream.Stream;
import org.meteora.eval.report.HtmlPage;
import org.meteora.eval.statistics.Interval;

/** A comparison as one HTML page that needs nothing else: tables, plots of intervals, samples. */
public final class ComparisonHtml {
  /** Samples of an evaluation on the page; the JSON has all. */
  private static final int SAMPLES = 100;

  private static final List<String> COLOURS =
      List.of(
          "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bb5566", "#777777");

  private static final int LABELS = 330;
  private static final int WIDTH = 900;
  private static final int RIGHT = 30;
  private static final int LINE = 16;

  private ComparisonHtml() {}

  public static String of(Comparison comparison) {
    var html = new StringBuilder();
    comparison.warnings().forEach(each -> html.append(element("p class=\"warning\"", each)));
    var tables = Tables.of(comparison);
    table(html, tables.getFirst());
    html.append("<p>");
    for (int c = 0; c < comparison.columns().size(); c++) {
      html.append(
          "<span class=\"key\" style=\"background:%s\"></span>%s"
              .formatted(colour(c), escapeHtml(comparison.columns().get(c))));
    }
    html.append("</p>\n");
    scores(comparison).forEach(score -> plot(html, comparison, score, false));
    for (var table : tables.subList(1, tables.size())) {
      table(html, table);
      if (table.title().startsWith(Tables.CHANGES)) {
        scores(comparison).forEach(score -> plot(html, comparison, score, true));
      }
    }
    html.append("<h2>Samples where they differ</h2>\n");
    comparison.samples().forEach(each -> samples(html, comparison, each));
    html.append(element("p", ComparisonText.method(comparison)));
    return HtmlPage.of(String.join(", ", comparison.columns()), html);
  }

  private static String colour(int column) {
    return COLOURS.get(column % COLOURS.size());
  }

  private static void table(StringBuilder html, Tables.Table table) {
    html.append(element("h2", table.title())).append("<div class=\"wide\"><table><tr>\n");
    table.header().forEach(each -> html.append(element("th", each)));
    html.append("</tr>\n");
    for (var row : table.rows()) {
      html.append("<tr>\n");
      row.forEach(each -> html.append(element("td", each)));
      html.append("</tr>\n");
    }
    html.append("</table></div>\n");
  }

  private static List<String> scores(Comparison comparison) {
    return comparison.rows().stream()
        .map(Comparison.Row::score)
        .filter(score -> !score.equals(Published.BLEU))
        .distinct()
        .toList();
  }

  /** A mark and a line from end to end of its interval. */
  private record Mark(int column, double value, Interval interval) {}

  private record Line(String label, List<Mark> marks) {}

  private static void plot(
      StringBuilder html, Comparison comparison, String score, boolean changes) {
    var lines =
        Tables.all(comparison).stream()
            .filter(row -> row.score().equals(score))
            .map(row -> new Line(row.label(), marks(row, changes)))
            .filter(line -> !line.marks().isEmpty())
            .toList();
    if (lines.isEmpty()) {
      return;
    }
    int height = 30;
    var ends = new DoubleSummaryStatistics();
    if (changes) {
      ends.accept(0);
    }
    for (var line : lines) {
      height += line.marks().size() * LINE + 8;
      for (var mark : line.marks()) {
        ends.accept(mark.value());
        ends.accept(mark.interval().low());
        ends.accept(mark.interval().high());
      }
    }
    double low = ends.getMin();
    double high = ends.getMax();
    double margin = high > low ? (high - low) * 0.05 : 0.5;
    var scale = new Scale(low - margin, high + margin);
    var difference = changes ? ", difference from " + comparison.columns().getFirst() : "";
    html.append(element("h3", score + difference));
    HtmlPage.svg(html, WIDTH, height, score);
    scale.axis(html, height - 22, changes);
    int y = 4;
    for (var line : lines) {
      int middle = y + line.marks().size() * LINE / 2 + 4;
      HtmlPage.text(html, LABELS - 10, middle, "end", shortened(line.label()));
      for (var mark : line.marks()) {
        HtmlPage.append(
            html,
            "<g stroke=\"%1$s\" fill=\"%1$s\"><title>%2$s: %3$.4f (%4$s)</title>"
                + "<line x1=\"%5$.1f\" x2=\"%6$.1f\" y1=\"%7$d\" y2=\"%7$d\""
                + " stroke-width=\"2\"/><circle cx=\"%8$.1f\" cy=\"%7$d\" r=\"4\"/></g>%n",
            colour(mark.column()),
            escapeHtml(comparison.columns().get(mark.column())),
            mark.value(),
            mark.interval().text("%.4f"),
            scale.x(mark.interval().low()),
            scale.x(mark.interval().high()),
            y + LINE / 2,
            scale.x(mark.value()));
        y += LINE;
      }
      y += 8;
    }
    html.append("</svg>\n");
  }

  private static List<Mark> marks(Comparison.Row row, boolean changes) {
    var marks = new ArrayList<Mark>();
    for (int c = 0; c < row.cells().size(); c++) {
      var cell = row.cells().get(c);
      if (cell != null && !changes && cell.interval() != null) {
        marks.add(new Mark(c, cell.score(), cell.interval()));
      } else if (cell != null && changes && cell.change() != null) {
        marks.add(new Mark(c, cell.change().difference(), cell.change().interval()));
      }
    }
    return marks;
  }

  private static String shortened(String label) {
    return label.length() <= 48 ? label : label.substring(0, 47) + "…";
  }

  private record Scale(double low, double high) {
    double x(double value) {
      return LABELS + (value - low) / (high - low) * (WIDTH - LABELS - RIGHT);
    }

    /** Lines at round numbers, and a strong one at 0 where differences are shown. */
    void axis(StringBuilder html, int bottom, boolean zero) {
      double raw = (high - low) / 6;
      double unit = Math.pow(10, Math.floor(Math.log10(raw)));
      double step =
          Stream.of(1, 2, 5, 10).map(m -> m * unit).filter(s -> s >= raw).findFirst().orElse(raw);
      int digits = Math.max(0, (int) -Math.floor(Math.log10(step) + 1e-9));
      for (double value = Math.ceil(low / step) * step; value <= high; value += step) {
        boolean strong = zero && Math.abs(value) < step / 1e6;
        HtmlPage.append(
            html,
            "<line x1=\"%1$.1f\" x2=\"%1$.1f\" y1=\"0\" y2=\"%2$d\" stroke=\"currentColor\""
                + " stroke-opacity=\"%3$s\"/><text x=\"%1$.1f\" y=\"%4$d\""
                + " text-anchor=\"middle\">%5$s</text>%n",
            x(value),
            bottom,
            strong ? "0.8" : "0.15",
            bottom + 16,
            String.format(Locale.ROOT, "%." + digits + "f", strong ? 0 : value));
      }
    }
  }

  private static void samples(
      StringBuilder html, Comparison comparison, Comparison.Samples samples) {
    html.append("<details><summary>").append(escapeHtml(ComparisonText.summary(samples)));
    if (samples.different().size() > SAMPLES) {
      html.append(" (the first ").append(SAMPLES).append(" here, all in the JSON)");
    }
    html.append("</summary>\n");
    samples.different().stream().limit(SAMPLES).forEach(each -> sample(html, comparison, each));
    html.append("</details>\n");
  }

  private static void sample(
      StringBuilder html, Comparison comparison, Comparison.Difference sample) {
    var answers = new StringBuilder();
    html.append("<details><summary>sample ").append(sample.index());
    for (int c = 0; c < comparison.columns().size(); c++) {
      if (sample.answers().get(c) != null) {
        var column = escapeHtml(comparison.columns().get(c));
        html.append(" · ").append(column).append(escapeHtml(ComparisonText.verdict(sample, c)));
        answers.append(column).append(element("pre", sample.answers().get(c)));
      }
    }
    html.append("</summary>\n").append(element("pre", sample.prompt()));
    html.append("truth").append(element("pre", sample.truth())).append(answers);
    html.append("</details>\n");
  }
}
