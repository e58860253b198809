package org.meteora.io;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.Random;
import org.junit.jupiter.api.Test;

class PrintableTest {
  @Test
  void controlCharactersAreShownNotSent() {
    assertThat(Printable.text("a\u001b]52;c;eA==\u0007b\u009b2J\u007f\u202e\r"))
        .isEqualTo("a\\u001b]52;c;eA==\\u0007b\\u009b2J\\u007f\\u202e\\u000d");
    assertThat(Printable.text("Grüße\t😀\n")).isEqualTo("Grüße\t😀\n");
    assertThat(Printable.line(" a \r\n b\u0000 ")).isEqualTo("a b\\u0000");
  }

  /**
   * Cut into pieces anywhere, the stream escapes what the string does; a progress bar's \r stays.
   */
  @Test
  void theStreamEscapesTheSame() throws IOException {
    var text = "Grüße 😀 \u001b[31m\u009d0;x\u009c \u2066x\u2069 \r end \u0000\u007f €";
    var bytes = text.getBytes(StandardCharsets.UTF_8);
    var random = new Random(3);
    for (int round = 0; round < 200; round++) {
      var to = new ByteArrayOutputStream();
      try (var stream = Printable.escaping(to)) {
        for (int at = 0; at < bytes.length; ) {
          int n = Math.min(bytes.length - at, 1 + random.nextInt(4));
          stream.write(bytes, at, n);
          at += n;
        }
      }
      assertThat(to.toString(StandardCharsets.UTF_8))
          .isEqualTo(Printable.text(text).replace("\\u000d", "\r"));
    }
  }

  @Test
  void bytesThatAreNoCharacterAreReplaced() throws IOException {
    var to = new ByteArrayOutputStream();
    try (var stream = Printable.escaping(to)) {
      // an 8-bit CSI, a cut-off character before an escape, an overlong escape
      stream.write(
          new byte[] {(byte) 0x9b, 'x', (byte) 0xe2, (byte) 0x82, 0x1b, (byte) 0xc0, (byte) 0x9b});
    }
    assertThat(to.toString(StandardCharsets.UTF_8)).isEqualTo("\ufffdx\ufffd\\u001b\ufffd\ufffd");
  }
}
