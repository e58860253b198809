package org.meteora.io;

import static java.lang.foreign.ValueLayout.JAVA_INT;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.meteora.foreign.Functions;

/**
 * Fonts for charts where the machine has none. Java asks fontconfig for them, and draws no text
 * without it, or without a single font; then a font that comes with this software (DejaVu Sans)
 * stands for all of Java's logical fonts. To be called before anything is drawn.
 */
public final class Fonts {
  private static final String PROPERTY = "sun.awt.fontconfig";

  /** Whose fonts are used; decided once. */
  private static final String SOURCE = choose();

  private Fonts() {}

  /**
   * Makes sure that text can be drawn.
   *
   * @return where fonts come from, for people
   */
  public static String prepare() {
    return SOURCE;
  }

  private static String choose() {
    if (System.getProperty(PROPERTY) != null) {
      return System.getProperty(PROPERTY);
    }
    int fonts = systemFonts();
    if (fonts > 0) {
      return "fontconfig, " + fonts + " fonts";
    }
    try {
      System.setProperty(PROPERTY, unpack(Files.createTempDirectory("meteora-fonts")).toString());
      return "DejaVu Sans, which comes with meteora";
    } catch (IOException e) {
      throw new UncheckedIOException("cannot unpack a font: " + e.getMessage(), e);
    }
  }

  /**
   * Unpacks the font, and Java's description of it, into a folder that goes when the process ends.
   */
  static Path unpack(Path folder) throws IOException {
    var font = folder.resolve("DejaVuSans.ttf");
    var settings = folder.resolve("fontconfig.properties");
    try (var in = Fonts.class.getResourceAsStream("/fonts/DejaVuSans.ttf")) {
      Files.copy(in, font);
    }
    Files.writeString(settings, settings(font));
    for (var file : List.of(folder, font, settings)) {
      file.toFile().deleteOnExit();
    }
    return settings;
  }

  /** Java's description of fonts: every logical font in every style is the one file. */
  private static String settings(Path font) {
    var name = "-misc-dejavu sans-medium-r-normal--*-%d-*-*-p-*-iso10646-1";
    var text = new StringBuilder("version=1\nsequence.allfonts=all\n");
    for (var family : List.of("serif", "sansserif", "monospaced", "dialog", "dialoginput")) {
      for (var style : List.of("plain", "bold", "italic", "bolditalic")) {
        text.append(family).append('.').append(style).append(".all=").append(name).append('\n');
      }
    }
    return text.append("filename.").append(name.replace(' ', '_')).append('=').append(font) + "\n";
  }

  /** How many fonts fontconfig knows; 0 without it. */
  private static int systemFonts() {
    return Functions.library("libfontconfig.so.1")
        .flatMap(library -> library.find("FcConfigGetFonts"))
        .map(function -> Functions.call(Functions.bind(function, "(AI)A"), MemorySegment.NULL, 0))
        .map(MemorySegment.class::cast)
        .map(set -> set.address() == 0 ? 0 : set.reinterpret(4).get(JAVA_INT, 0))
        .orElse(0);
  }
}
