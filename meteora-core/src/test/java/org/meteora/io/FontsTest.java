package org.meteora.io;

import static org.assertj.core.api.Assertions.assertThat;

import java.awt.Font;
import java.awt.image.BufferedImage;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class FontsTest {
  /** Draws a word with each of two logical fonts and prints how many pixels that took. */
  static final class Draw {
    public static void main(String[] arguments) {
      for (var family : new String[] {Font.SANS_SERIF, Font.MONOSPACED}) {
        var image = new BufferedImage(200, 40, BufferedImage.TYPE_INT_RGB);
        var g = image.createGraphics();
        g.setFont(new Font(family, Font.BOLD, 20));
        g.drawString("Loss 0.5", 10, 30);
        int drawn = 0;
        for (int i = 0; i < 200 * 40; i++) {
          drawn += (image.getRGB(i % 200, i / 200) & 0xffffff) != 0 ? 1 : 0;
        }
        System.out.println(drawn);
      }
    }
  }

  /** As on a machine without fontconfig: with this setting Java does not ask for it. */
  @Test
  void theOwnFontServesWhereThereIsNone(@TempDir Path folder) throws Exception {
    var process =
        new ProcessBuilder(
                Path.of(System.getProperty("java.home"), "bin/java").toString(),
                "-Djava.awt.headless=true",
                "-Dsun.awt.fontconfig=" + Fonts.unpack(folder),
                "-cp",
                System.getProperty("java.class.path"),
                Draw.class.getName())
            .redirectErrorStream(true)
            .start();
    var output = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    assertThat(process.waitFor(60, TimeUnit.SECONDS)).isTrue();
    assertThat(output.lines())
        .hasSize(2)
        .allSatisfy(n -> assertThat(Integer.parseInt(n)).isGreaterThan(100));
  }
}
