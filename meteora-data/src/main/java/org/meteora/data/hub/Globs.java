package org.meteora.data.hub;

import java.util.regex.Pattern;

/** File patterns as the Hub's own tools read them: {@code *} stops at nothing, not even a slash. */
final class Globs {
  private Globs() {}

  /** {@code *}, {@code ?}, {@code [ab]}, {@code [!ab]}; a folder {@code name/} means all in it. */
  static Pattern compile(String glob) {
    var regex = new StringBuilder();
    var text = glob.endsWith("/") ? glob + "*" : glob;
    for (int i = 0; i < text.length(); i++) {
      char c = text.charAt(i);
      int close = c == '[' ? text.indexOf(']', i + 2) : -1;
      if (c == '*') {
        regex.append(".*");
      } else if (c == '?') {
        regex.append('.');
      } else if (close > 0) {
        var set = text.substring(i + 1, close);
        boolean not = set.startsWith("!");
        regex
            .append(not ? "[^" : "[")
            .append((not ? set.substring(1) : set).replaceAll("([\\\\\\[\\]^&])", "\\\\$1"))
            .append(']');
        i = close;
      } else {
        regex.append(Pattern.quote(String.valueOf(c)));
      }
    }
    return Pattern.compile(regex.toString(), Pattern.DOTALL);
  }
}
