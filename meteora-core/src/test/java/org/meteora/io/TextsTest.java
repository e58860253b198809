package org.meteora.io;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.UserException;

class TextsTest {
  @TempDir Path folder;

  @Test
  void aByteOrderMarkIsPassedOver() throws IOException {
    var file = folder.resolve("a.jsonl");
    Files.writeString(file, "\ufeff{\"prompt\": \"Größe\"}\n\n{\"prompt\": \"b\"}\n");
    assertThat(Jsonl.read(file, (node, where) -> Jsonl.text(node, "prompt", where)))
        .containsExactly("Größe", "b");
    Files.writeString(file, "\ufeff{\"a\": 1}");
    assertThat(Jsonl.readFile(file).get("a").asInt()).isEqualTo(1);
  }

  @Test
  void anotherEncodingIsRefused() throws IOException {
    var file = folder.resolve("a.json");
    for (var charset :
        new java.nio.charset.Charset[] {
          StandardCharsets.UTF_16, StandardCharsets.UTF_16LE, StandardCharsets.ISO_8859_1
        }) {
      Files.write(file, "{\"ä\": 1}".getBytes(charset));
      assertThatThrownBy(() -> Jsonl.readFile(file))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("a.json");
    }
  }

  /** Independent: what UTF-8 makes of a text, where each lone half is written as three bytes. */
  @Property(tries = 500)
  void aTextIsWellFormedAfterwardsAndElseTheSame(@ForAll char[] chars) {
    var text = new String(chars);
    var result = Texts.wellFormed(text);
    assertThat(result).hasSameSizeAs(text);
    assertThat(new String(result.getBytes(StandardCharsets.UTF_8), StandardCharsets.UTF_8))
        .isEqualTo(result);
    int[] before = text.codePoints().toArray();
    int[] after = result.codePoints().toArray();
    for (int i = 0; i < before.length; i++) {
      boolean half = before[i] >= 0xD800 && before[i] <= 0xDFFF;
      assertThat(after[i]).isEqualTo(half ? 0xFFFD : before[i]);
    }
  }

  /** Such as a device, which has no end. */
  @Test
  void aLineWithoutEndIsRefused() {
    var zeros =
        new InputStream() {
          @Override
          public int read() {
            return 0;
          }

          @Override
          public int read(byte[] to, int from, int length) {
            return length;
          }
        };
    assertThatThrownBy(
            () -> {
              try (var lines = Texts.lines(zeros)) {
                lines.readLine();
              }
            })
        .isInstanceOf(IOException.class)
        .hasMessageContaining("a line of more than 67108864 characters");
  }
}
