package org.meteora.eval.routes;

import java.awt.BasicStroke;
import java.awt.Color;
import java.awt.Font;
import java.awt.Graphics2D;
import java.awt.font.FontRenderContext;
import java.nio.file.Path;
import java.util.List;

/** The heat map of a {@link RoutingMatrix} as a PNG. */
final class RoutingMatrixPng {
  private static final int CELL = 26;
  private static final int MARGIN = 24;

  /** A label's longest extent; longer ones are cut. */
  private static final int LONGEST = 230;

  private static final double SLANT = Math.PI / 3;

  private final RoutingMatrix matrix;
  private final String title;
  private final int left;
  private final int top;
  private final int width;
  private final int height;

  private RoutingMatrixPng(RoutingMatrix matrix, String title) {
    this.matrix = matrix;
    this.title = title;
    int columns = CELL * matrix.adapters().size();
    double longest = extent(matrix.adapters());
    left = MARGIN + 8 + (int) Math.ceil(extent(matrix.tasks()));
    top = 58 + 24 + (int) Math.ceil(Math.max(longest * Math.sin(SLANT), 12));
    int slanted = (int) Math.ceil(longest * Math.cos(SLANT));
    width = Math.max(560, left + columns + Math.max(110, slanted + MARGIN));
    height = top + CELL * matrix.tasks().size() + MARGIN;
  }

  private static double extent(List<String> labels) {
    var font = Figures.font(Font.PLAIN, 11);
    var context = new FontRenderContext(null, true, true);
    return labels.stream()
        .mapToDouble(label -> Math.min(LONGEST, font.getStringBounds(label, context).getWidth()))
        .max()
        .orElse(0);
  }

  /** The heat map of shares over all gates; the task's own adapter is framed. */
  static void write(RoutingMatrix matrix, String title, Path file) {
    var figure = new RoutingMatrixPng(matrix, title);
    Figures.write(file, figure.width, figure.height, figure::draw);
  }

  private void draw(Graphics2D g) {
    var adapters = matrix.adapters();
    var tasks = matrix.tasks();
    Figures.pen(g, Font.BOLD, 17, Figures.INK);
    g.drawString(Figures.fit(g, title, width - 2 * MARGIN), MARGIN, 38);
    Figures.pen(g, Font.PLAIN, 12, Figures.DIM);
    g.drawString(
        "Share of routing weight (%), all layers and modules; framed: the task's own adapter",
        MARGIN, 58);
    for (int a = 0; a < adapters.size(); a++) {
      var turned = (Graphics2D) g.create();
      Figures.pen(turned, Font.PLAIN, 11, Figures.INK);
      turned.rotate(-SLANT, left + CELL * (a + 0.62), top - 8);
      turned.drawString(
          Figures.fit(turned, adapters.get(a), LONGEST),
          (float) (left + CELL * (a + 0.62)),
          top - 8);
      turned.dispose();
    }
    Figures.pen(g, Font.BOLD, 11, Figures.DIM);
    g.drawString("right first", left + CELL * adapters.size() + 12, top - 8);
    for (int t = 0; t < tasks.size(); t++) {
      var name = tasks.get(t);
      int y = top + CELL * t;
      Figures.pen(g, Font.PLAIN, 11, Figures.INK);
      var label = Figures.fit(g, name, LONGEST);
      g.drawString(label, left - 8 - g.getFontMetrics().stringWidth(label), y + 17);
      var shares = matrix.shares(name, RoutingTrace.ALL, RoutingTrace.ALL);
      for (int a = 0; a < shares.length; a++) {
        int x = left + CELL * a;
        var colour = heat(shares[a]);
        g.setColor(colour);
        g.fillRect(x, y, CELL - 1, CELL - 1);
        if (shares[a] >= 0.005) {
          Figures.pen(g, Font.PLAIN, 10, Figures.ink(colour));
          var text = "" + Math.round(100 * shares[a]);
          g.drawString(text, x + (CELL - 1 - g.getFontMetrics().stringWidth(text)) / 2, y + 17);
        }
        if (adapters.get(a).equals(name)) {
          g.setColor(new Color(0xD55E00));
          g.setStroke(new BasicStroke(2));
          g.drawRect(x, y, CELL - 2, CELL - 2);
        }
      }
      Figures.pen(g, Font.PLAIN, 11, Figures.INK);
      g.drawString(
          adapters.contains(name)
              ? Figures.percent(matrix.rightFirst(name, RoutingTrace.ALL, RoutingTrace.ALL))
              : "–",
          left + CELL * adapters.size() + 12,
          y + 17);
    }
  }

  /** White to dark blue, even to the eye in grey too. */
  private static Color heat(double share) {
    double s = Math.pow(Math.clamp(share, 0, 1), 0.7);
    return new Color(
        (int) (246 + s * (8 - 246)), (int) (248 + s * (48 - 248)), (int) (251 + s * (107 - 251)));
  }
}
