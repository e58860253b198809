package org.meteora.eval.compare;

import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Objects;
import java.util.stream.Stream;

/** A comparison as tables of text, for the terminal, for Markdown and for a page. */
final class Tables {
  /** How the title of the table of differences begins. */
  static final String CHANGES = "Differences from ";

  private static final String NONE = "–";

  private Tables() {}

  /** Its rows are as long as the header. */
  record Table(String title, List<String> header, List<List<String>> rows) {}

  /** Scores, differences from the first column, and settings that differ; empty ones left out. */
  static List<Table> of(Comparison comparison) {
    return Stream.of(scores(comparison), changes(comparison), settings(comparison))
        .filter(table -> !table.rows().isEmpty())
        .toList();
  }

  /** Rows of tasks, then of means. */
  static List<Comparison.Row> all(Comparison comparison) {
    return Stream.concat(comparison.rows().stream(), comparison.means().stream()).toList();
  }

  private static Table scores(Comparison comparison) {
    var header = new ArrayList<>(List.of("task", "score", "samples"));
    header.addAll(comparison.columns());
    header.addAll(comparison.published());
    var rows = new ArrayList<List<String>>();
    for (var row : all(comparison)) {
      var line = begin(row);
      line.add(String.valueOf(row.samples()));
      row.cells().forEach(cell -> line.add(score(row, cell)));
      for (int i = 0; i < comparison.published().size(); i++) {
        var value = row.published().isEmpty() ? null : row.published().get(i);
        line.add(value == null ? NONE : text(format(row, ""), value));
      }
      rows.add(line);
    }
    return new Table("Scores, with 95 % intervals", header, rows);
  }

  private static Table changes(Comparison comparison) {
    var header = new ArrayList<>(List.of("task", "score"));
    header.addAll(comparison.columns().subList(1, comparison.columns().size()));
    var rows = new ArrayList<List<String>>();
    for (var row : all(comparison)) {
      var cells = row.cells().subList(1, row.cells().size());
      if (cells.stream().filter(Objects::nonNull).anyMatch(cell -> cell.change() != null)) {
        var line = begin(row);
        cells.forEach(cell -> line.add(change(row, cell == null ? null : cell.change())));
        rows.add(line);
        if (shares(cells).anyMatch(Objects::nonNull)) {
          var divided = begin(row);
          divided.set(0, divided.getFirst() + ", divided by " + comparison.columns().getFirst());
          shares(cells).forEach(share -> divided.add(share(share)));
          rows.add(divided);
        }
      }
    }
    return new Table(
        CHANGES
            + comparison.columns().getFirst()
            + ", on the same samples (*: the 95 % interval leaves 0 out)",
        header,
        rows);
  }

  private static Stream<Comparison.Share> shares(List<Comparison.Cell> cells) {
    return cells.stream()
        .map(cell -> cell == null || cell.change() == null ? null : cell.change().share());
  }

  private static Table settings(Comparison comparison) {
    var header = new ArrayList<>(List.of("setting", "tasks"));
    header.addAll(comparison.columns());
    var rows = new ArrayList<List<String>>();
    for (var setting : comparison.differences()) {
      var line = new ArrayList<>(List.of(setting.name(), String.join(", ", setting.tasks())));
      setting.values().forEach(value -> line.add(value == null ? NONE : value));
      rows.add(line);
    }
    return new Table("In what the runs differ", header, rows);
  }

  private static List<String> begin(Comparison.Row row) {
    return new ArrayList<>(List.of(row.label(), row.score()));
  }

  /** BLEU goes to 100, the others to 1 or to the number of questions. */
  private static String format(Comparison.Row row, String flags) {
    return "%" + flags + (row.score().startsWith("BLEU") ? ".2f" : ".3f");
  }

  private static String text(String format, double value) {
    return String.format(Locale.ROOT, format, value);
  }

  private static String score(Comparison.Row row, Comparison.Cell cell) {
    if (cell == null || cell.score() == null) {
      return NONE;
    }
    var format = format(row, "");
    var interval = cell.interval() == null ? "" : " (" + cell.interval().text(format) + ")";
    return text(format, cell.score()) + interval;
  }

  private static String change(Comparison.Row row, Comparison.Change change) {
    if (change == null) {
      return NONE;
    }
    var format = format(row, "+");
    return "%s%s (%s)%s"
        .formatted(
            text(format, change.difference()),
            change.clear() ? "*" : "",
            change.interval().text(format),
            change.mcnemar() == null ? "" : ", " + probability(change.mcnemar()));
  }

  private static String share(Comparison.Share share) {
    return share == null
        ? NONE
        : text("%.3f", share.value()) + " (" + share.interval().text("%.3f") + ")";
  }

  private static String probability(double p) {
    return p < 0.0005 ? "p < 0.001" : text("p = %.3f", p);
  }
}
