package org.meteora;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.regex.Pattern;
import org.junit.jupiter.api.Test;

/**
 * What a program that uses meteora-core can call has Javadoc. That what is written is right is
 * checked by doclint, at each compilation; its group {@code missing} is off, since a sentence that
 * says what comes back needs no {@code @return} that says it again.
 */
class DocumentedTest {
  private static final List<String> PACKAGES =
      List.of(
          ".",
          "backend",
          "checkpoint",
          "generate",
          "io",
          "lora",
          "model",
          "model/llama",
          "moe",
          "moe/forward",
          "nn",
          "router",
          "safetensors",
          "tensor");

  /** A type or a member; a record's compact constructor is part of its type. */
  private static final Pattern PUBLIC =
      Pattern.compile("(?: {2})*(?:public|protected) (?!\\w+ \\{$).*");

  @Test
  void everyPublicMemberOfTheLibraryHasAComment() throws IOException {
    var sources =
        Path.of(System.getProperty("meteora.root", ".."))
            .resolve("meteora-core/src/main/java/org/meteora");
    var without = new ArrayList<String>();
    int seen = 0;
    for (var name : PACKAGES) {
      try (var files = Files.list(sources.resolve(name))) {
        for (var file : files.filter(path -> path.toString().endsWith(".java")).sorted().toList()) {
          var lines = Files.readAllLines(file);
          if (lines.stream().noneMatch(line -> line.startsWith("public "))
              || file.endsWith("DjlNatives.java")) { // the JVM calls those, nobody else
            continue;
          }
          for (int i = 0; i < lines.size(); i++) {
            if (PUBLIC.matcher(lines.get(i)).matches()) {
              seen++;
              if (!isDocumented(lines, i)) {
                without.add(sources.relativize(file) + ":" + (i + 1) + lines.get(i));
              }
            }
          }
        }
      }
    }
    assertThat(seen).isGreaterThan(400);
    assertThat(without).isEmpty();
  }

  /** What overrides has the Javadoc of what it overrides. */
  private static boolean isDocumented(List<String> lines, int at) {
    int above = at - 1;
    while (lines.get(above).strip().startsWith("@")) {
      if (lines.get(above).strip().equals("@Override")) {
        return true;
      }
      above--;
    }
    return lines.get(above).strip().endsWith("*/");
  }
}
