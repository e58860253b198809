package org.meteora;

import static org.assertj.core.api.Assertions.assertThat;

import com.google.googlejavaformat.java.Formatter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import org.junit.jupiter.api.Test;

/**
 * All sources are in google-java-format. A test and not a Maven plugin, because Maven may run on a
 * Java too old to read them. scripts/format mends what it lists.
 */
class FormatTest {
  @Test
  void sourcesAreFormatted() throws Exception {
    var root = Path.of(System.getProperty("meteora.root", ".."));
    boolean write = "write".equals(System.getProperty("meteora.format"));
    var formatter = new Formatter();
    var wrong = new ArrayList<Path>();
    try (var files = Files.walk(root)) {
      for (var file :
          files
              .filter(
                  path -> path.toString().endsWith(".java") && path.toString().contains("/src/"))
              .filter(path -> !path.toString().contains("/target/"))
              .toList()) {
        var text = Files.readString(file);
        // twice: long string literals settle in the second pass
        var formatted =
            formatter.formatSourceAndFixImports(formatter.formatSourceAndFixImports(text));
        if (!formatted.equals(text)) {
          wrong.add(root.relativize(file));
          if (write) {
            Files.writeString(file, formatted);
          }
        }
      }
    }
    if (!write) {
      assertThat(wrong).as("not in google-java-format: run scripts/format").isEmpty();
    }
  }
}
