package org.meteora.eval.routes;

import java.awt.BasicStroke;
import java.awt.Color;
import java.awt.Font;
import java.awt.Graphics2D;
import java.awt.Rectangle;
import java.awt.RenderingHints;
import java.awt.TexturePaint;
import java.awt.geom.Ellipse2D;
import java.awt.geom.Line2D;
import java.awt.image.BufferedImage;
import java.io.IOException;
import java.nio.file.Path;
import java.util.Locale;
import java.util.function.Consumer;
import javax.imageio.ImageIO;
import org.meteora.UserException;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Fonts;

/** What the PNG figures share: a canvas of twice the stated size, colours, patterns. */
final class Figures {
  static {
    Fonts.prepare();
  }

  static final int SCALE = 2;
  static final Color INK = new Color(0x1B1E23);
  static final Color DIM = new Color(0x5A6270);

  private Figures() {}

  static Font font(int style, float size) {
    return new Font(Font.SANS_SERIF, style, 1).deriveFont(style, size);
  }

  /** What texts are drawn with from now on. */
  static void pen(Graphics2D g, int style, float size, Color ink) {
    g.setFont(font(style, size));
    g.setColor(ink);
  }

  /**
   * Draws and writes a PNG.
   *
   * @throws UserException when this Java has no fonts to draw text with, or the file cannot be
   *     written
   */
  static void write(Path file, int width, int height, Consumer<Graphics2D> draw) {
    var image = new BufferedImage(width * SCALE, height * SCALE, BufferedImage.TYPE_INT_RGB);
    var g = image.createGraphics();
    try {
      g.scale(SCALE, SCALE);
      g.setRenderingHint(RenderingHints.KEY_ANTIALIASING, RenderingHints.VALUE_ANTIALIAS_ON);
      g.setRenderingHint(
          RenderingHints.KEY_TEXT_ANTIALIASING, RenderingHints.VALUE_TEXT_ANTIALIAS_ON);
      g.setRenderingHint(
          RenderingHints.KEY_FRACTIONALMETRICS, RenderingHints.VALUE_FRACTIONALMETRICS_ON);
      g.setColor(Color.WHITE);
      g.fillRect(0, 0, width, height);
      draw.accept(g);
    } finally {
      g.dispose();
    }
    AtomicFiles.writeStream(
        file,
        out -> {
          ImageIO.setUseCache(false); // else it needs a folder for temporary files
          if (!ImageIO.write(image, "png", out)) {
            throw new IOException("no PNG writer");
          }
        });
  }

  /** A look's colour on white, stronger for a higher share. */
  static Color colour(int look, double share) {
    int rgb = Palette.colour(look);
    double alpha = 0.14 + 0.72 * Math.min(1, share);
    return new Color(
        (int) Math.round((rgb >> 16 & 255) * alpha + 255 * (1 - alpha)),
        (int) Math.round((rgb >> 8 & 255) * alpha + 255 * (1 - alpha)),
        (int) Math.round((rgb & 255) * alpha + 255 * (1 - alpha)));
  }

  /** Black or white, whichever reads better on the colour. */
  static Color ink(Color on) {
    return luminance(on) > 0.179 ? Color.BLACK : Color.WHITE;
  }

  private static double luminance(Color c) {
    return 0.2126 * linear(c.getRed())
        + 0.7152 * linear(c.getGreen())
        + 0.0722 * linear(c.getBlue());
  }

  private static double linear(int value) {
    double v = value / 255.0;
    return v <= 0.04045 ? v / 12.92 : Math.pow((v + 0.055) / 1.055, 2.4);
  }

  /** Fills a rectangle with a look's colour and pattern. */
  static void fill(
      Graphics2D g, int look, double share, double x, double y, double width, double height) {
    var area = new java.awt.geom.Rectangle2D.Double(x, y, width, height);
    g.setColor(colour(look, share));
    g.fill(area);
    if (Palette.pattern(look) > 0) {
      g.setPaint(tile(Palette.pattern(look)));
      g.fill(area);
    }
  }

  private static TexturePaint tile(int pattern) {
    int size = 6;
    int fine = 4;
    var image = new BufferedImage(size * fine, size * fine, BufferedImage.TYPE_INT_ARGB);
    var g = image.createGraphics();
    g.scale(fine, fine);
    g.setRenderingHint(RenderingHints.KEY_ANTIALIASING, RenderingHints.VALUE_ANTIALIAS_ON);
    g.setColor(new Color(0, 0, 0, 60));
    g.setStroke(new BasicStroke(1));
    for (int o = -size; o <= size; o += size) {
      if (pattern == 1 || pattern == 6) {
        g.draw(new Line2D.Double(o, size, o + size, 0));
      }
      if (pattern == 2 || pattern == 6) {
        g.draw(new Line2D.Double(o, 0, o + size, size));
      }
    }
    if (pattern == 3) {
      g.draw(new Line2D.Double(0, 3, size, 3));
    }
    if (pattern == 4) {
      g.fill(new Ellipse2D.Double(1.8, 1.8, 2.4, 2.4));
    }
    if (pattern == 5) {
      g.draw(new Line2D.Double(3, 0, 3, size));
    }
    g.dispose();
    return new TexturePaint(image, new Rectangle(0, 0, size, size));
  }

  static String percent(double share) {
    return String.format(Locale.ROOT, "%.1f %%", 100 * share);
  }

  /** Cuts a text so that it fits, with an ellipsis. */
  static String fit(Graphics2D g, String text, double width) {
    var metrics = g.getFontMetrics();
    if (metrics.stringWidth(text) <= width) {
      return text;
    }
    int end = text.length();
    while (end > 0 && metrics.stringWidth(text.substring(0, end) + "…") > width) {
      end--;
    }
    return text.substring(0, end) + "…";
  }
}
