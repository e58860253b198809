package org.meteora.eval.report;

import static org.meteora.io.Texts.escapeHtml;

import java.util.Locale;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.meteora.io.Texts;

/** Pages that need nothing else. */
public final class HtmlPage {
  private static final Pattern NAME = Pattern.compile("\\{\\{(\\w+)}}");

  private HtmlPage() {}

  /** A page of headings, tables and drawings: a title in plain text, a body in HTML. */
  public static String of(String title, CharSequence body) {
    var values = Map.of("title", escapeHtml(title), "body", body.toString());
    return filled(HtmlPage.class, "page.html", values);
  }

  /**
   * A line of text in an element.
   *
   * @param tag its name, attributes may follow
   */
  public static String element(String tag, String text) {
    return "<%s>%s</%s>\n".formatted(tag, escapeHtml(text), tag.split(" ")[0]);
  }

  /** Appends HTML whose numbers have digits that a browser reads. */
  public static void append(StringBuilder html, String format, Object... values) {
    html.append(String.format(Locale.ROOT, format, values));
  }

  public static void svg(StringBuilder html, int width, int height, String label) {
    append(
        html,
        "<svg viewBox=\"0 0 %1$d %2$d\" width=\"%1$d\" role=\"img\" aria-label=\"%3$s\">\n",
        width,
        height,
        escapeHtml(label));
  }

  /**
   * A text in a drawing.
   *
   * @param anchor {@code middle} or {@code end}: what of it is at x
   */
  public static void text(StringBuilder html, int x, int y, String anchor, String text) {
    var format = "<text x=\"%d\" y=\"%d\" text-anchor=\"%s\">%s</text>\n";
    append(html, format, x, y, anchor, escapeHtml(text));
  }

  /**
   * A resource with its {@code {{names}}} replaced; values are not searched again.
   *
   * @param beside the class beside which it lies
   */
  public static String filled(Class<?> beside, String resource, Map<String, String> values) {
    return NAME.matcher(Texts.resource(beside, resource))
        .replaceAll(name -> Matcher.quoteReplacement(values.get(name.group(1))));
  }
}
