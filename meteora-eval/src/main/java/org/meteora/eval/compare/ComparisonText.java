package org.meteora.eval.compare;

import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.stream.Stream;
import org.meteora.io.Printable;
import org.meteora.io.Texts;

/** A comparison as text for the terminal, or as Markdown. */
public final class ComparisonText {
  private static final int LONGEST = 300;

  private ComparisonText() {}

  /**
   * For the terminal.
   *
   * @param shown samples of each evaluation, of those where the systems differ
   */
  public static String plain(Comparison comparison, int shown) {
    var text = new StringBuilder();
    comparison.warnings().forEach(warning -> text.append("warning: ").append(warning).append('\n'));
    for (var table : Tables.of(comparison)) {
      text.append(text.isEmpty() ? "" : "\n").append(table.title()).append('\n');
      text.append(
          Texts.aligned(Stream.concat(Stream.of(table.header()), table.rows().stream()).toList()));
    }
    for (var samples : comparison.samples()) {
      text.append('\n').append(summary(samples)).append('\n');
      samples(text, "  ", comparison, samples, shown);
    }
    text.append('\n').append(method(comparison)).append('\n');
    return text.toString();
  }

  public static String markdown(Comparison comparison, int shown) {
    var text = new StringBuilder("# " + String.join(", ", comparison.columns()) + "\n");
    if (!comparison.warnings().isEmpty()) {
      text.append("\n**Warnings**\n\n");
      comparison.warnings().forEach(each -> text.append("- ").append(cell(each)).append('\n'));
    }
    for (var table : Tables.of(comparison)) {
      text.append("\n## ").append(table.title().replace("*", "\\*")).append("\n\n");
      row(text, table.header());
      row(text, table.header().stream().map(name -> "---").toList());
      table.rows().forEach(each -> row(text, each));
    }
    text.append("\n## Samples where they differ\n");
    for (var samples : comparison.samples()) {
      text.append("\n").append(summary(samples)).append("\n\n");
      samples(text, "    ", comparison, samples, shown);
    }
    return text.append('\n').append(method(comparison)).append('\n').toString();
  }

  private static void row(StringBuilder text, List<String> cells) {
    text.append("| ");
    text.append(String.join(" | ", cells.stream().map(ComparisonText::cell).toList()));
    text.append(" |\n");
  }

  private static String cell(String text) {
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;");
  }

  static String summary(Comparison.Samples samples) {
    return (samples.judged()
            ? "%s: %d of %d samples are right in some columns and wrong in others"
            : "%s: the answers to %d of %d samples differ")
        .formatted(samples.evaluation(), samples.different().size(), samples.compared());
  }

  static String method(Comparison comparison) {
    return ("Intervals: percentiles of %,d bootstrap resamples (seed %d), the same samples drawn"
            + " for all; p: McNemar's exact test, two-sided.")
        .formatted(comparison.resamples(), comparison.seed());
  }

  private static void samples(
      StringBuilder text, String indent, Comparison comparison, Comparison.Samples of, int shown) {
    for (var sample : of.different().subList(0, Math.min(shown, of.different().size()))) {
      line(text, indent, "sample " + sample.index(), sample.prompt());
      line(text, indent, "  truth", sample.truth());
      for (int c = 0; c < comparison.columns().size(); c++) {
        if (sample.answers().get(c) != null) {
          var label = "  " + comparison.columns().get(c) + verdict(sample, c);
          line(text, indent, label, sample.answers().get(c));
        }
      }
    }
  }

  /** The middle is left out of what is long: a prompt's question often stands at its end. */
  private static void line(StringBuilder text, String indent, String label, String value) {
    var line = Printable.text(value.strip().replaceAll("\\s*\\R\\s*", " ⏎ "));
    if (line.length() > LONGEST) {
      var end = line.substring(line.length() - 2 * LONGEST / 3);
      line = line.substring(0, LONGEST / 3) + " […] " + end;
    }
    text.append(indent).append(label).append(": ").append(line).append('\n');
  }

  /** Right or wrong; of a composite task, which parts are right of those that differ. */
  static String verdict(Comparison.Difference sample, int column) {
    if (sample.right().isEmpty()) {
      return "";
    }
    if (sample.right().size() == 1) {
      var right = sample.right().values().iterator().next().get(column);
      return right == null ? "" : right ? " (right)" : " (wrong)";
    }
    var parts =
        sample.right().entrySet().stream()
            .filter(part -> Objects.equals(part.getValue().get(column), true))
            .map(Map.Entry::getKey)
            .toList();
    return parts.isEmpty() ? " (right in none)" : " (right in " + String.join(", ", parts) + ")";
  }
}
