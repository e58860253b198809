package org.meteora.eval.report;

import java.util.Locale;
import java.util.Map;
import java.util.stream.Collectors;
import org.meteora.eval.Scores;
import org.meteora.eval.metric.BleuScore;
import org.meteora.eval.metric.RougeScore;
import org.meteora.eval.statistics.Interval;

/** Scores for people: one figure a line. */
public final class ScoreTable {
  private ScoreTable() {}

  public static String of(String title, Scores scores) {
    var text = new StringBuilder();
    text.append(title).append(": ").append(scores.samples()).append(" samples");
    if (scores.skipped() > 0) {
      text.append(", ").append(scores.skipped()).append(" skipped");
    }
    text.append('\n');
    lines(text, "  ", scores.metrics());
    var intervals = scores.intervals();
    if (intervals.values().stream().anyMatch(each -> !each.isEmpty())) {
      text.append("  95 % intervals:\n");
    }
    intervals.forEach(
        (task, figures) -> {
          if (!figures.isEmpty()) {
            text.append("    ").append(intervals.size() > 1 ? task + ": " : "");
            text.append(
                figures.entrySet().stream()
                    .map(each -> each.getKey() + " " + interval(each.getValue()))
                    .collect(Collectors.joining(", ")));
            text.append('\n');
          }
        });
    var warnings = scores.warnings();
    warning(text, warnings.emptyAnswers(), "empty answers");
    warning(text, warnings.tooLongAnswers(), "answers more than twice as long as the truth");
    warning(text, warnings.promptsLost(), "outputs that do not repeat their prompt");
    return text.toString();
  }

  private static void lines(StringBuilder text, String indent, Map<?, ?> figures) {
    figures.forEach(
        (name, value) -> {
          text.append(indent).append(name).append(':');
          switch (value) {
            case Map<?, ?> inner -> {
              text.append('\n');
              lines(text, indent + "  ", inner);
            }
            case BleuScore bleu -> text.append(' ').append(bleu.text()).append('\n');
            case RougeScore rouge ->
                text.append(
                    String.format(
                        Locale.ROOT, " r %.4f  p %.4f  f %.4f%n", rouge.r(), rouge.p(), rouge.f()));
            case Double number -> text.append(String.format(Locale.ROOT, " %.4f%n", number));
            case null -> text.append(" none (no answer to score)\n");
            default -> text.append(' ').append(value).append('\n');
          }
        });
  }

  private static String interval(Interval interval) {
    return interval.text(interval.high() > 1.5 ? "%.2f" : "%.3f"); // BLEU goes to 100
  }

  private static void warning(StringBuilder text, int count, String what) {
    if (count > 0) {
      text.append("  warning: ").append(count).append(' ').append(what).append('\n');
    }
  }
}
