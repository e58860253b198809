package org.meteora.eval.routes;

import java.awt.BasicStroke;
import java.awt.Color;
import java.awt.Font;
import java.awt.Graphics2D;
import java.awt.geom.Line2D;
import java.awt.image.BufferedImage;
import java.nio.file.Path;
import java.util.Comparator;
import java.util.List;
import java.util.stream.IntStream;
import org.meteora.io.Fonts;

/** Draws a trace for a paper: timeline, the coloured text, the legend of what occurs in it. */
public final class RoutesPng {
  static {
    Fonts.prepare();
  }

  private static final int WIDTH = 1100;
  private static final int MARGIN = 28;
  private static final int LINE_HEIGHT = 22;

  private final RoutingTrace trace;
  private final List<String> codes;
  private final double[][] shares;
  private final int[] dominant;
  private final double[] mean;
  private final int[] looks;
  private final List<Integer> order; // of the adapters, by falling mean

  private RoutesPng(RoutingTrace trace) {
    this.trace = trace;
    codes = Palette.codes(trace.adapters());
    looks = Palette.looks(trace);
    int tokens = trace.tokens().size();
    shares = new double[tokens][];
    dominant = new int[tokens];
    mean = new double[trace.adapters().size()];
    for (int t = 0; t < tokens; t++) {
      shares[t] = trace.shares(RoutingTrace.ALL, RoutingTrace.ALL, t);
      dominant[t] = RoutingTrace.dominant(shares[t]);
      for (int a = 0; a < mean.length; a++) {
        mean[a] += shares[t][a] / Math.max(1, trace.routedTokens());
      }
    }
    order =
        IntStream.range(0, mean.length)
            .boxed()
            .sorted(Comparator.comparingDouble(a -> -mean[a]))
            .toList();
  }

  /** Writes the figure, 2200 pixels wide, as high as the text needs. */
  public static void write(RoutingTrace trace, String title, Path file) {
    var figure = new RoutesPng(trace);
    // drawn twice: the first time only to learn the height
    var probe = new BufferedImage(1, 1, BufferedImage.TYPE_INT_RGB).createGraphics();
    int height = figure.draw(probe, title);
    probe.dispose();
    Figures.write(file, WIDTH, height, g -> figure.draw(g, title));
  }

  private int draw(Graphics2D g, String title) {
    int y = MARGIN + 14;
    Figures.pen(g, Font.BOLD, 17, Figures.INK);
    g.drawString(Figures.fit(g, title, WIDTH - 2.0 * MARGIN), MARGIN, y);
    y = timeline(g, y + 16);
    int prompt = trace.promptTokens();
    y = heading(g, "Prompt", y + 26);
    y = text(g, 0, prompt, y);
    if (prompt < shares.length) {
      y = heading(g, "Answer", y + 18);
      y = text(g, prompt, shares.length, y);
    }
    y = heading(g, "Adapters (mean share of weight)", y + 18);
    return legend(g, y) + MARGIN;
  }

  private static int heading(Graphics2D g, String text, int y) {
    Figures.pen(g, Font.BOLD, 12, Figures.DIM);
    g.drawString(text, MARGIN, y);
    return y + 10;
  }

  private int timeline(Graphics2D g, int top) {
    int left = MARGIN + 40;
    double width = WIDTH - MARGIN - left;
    int strip = 16;
    int height = 120;
    int tokens = shares.length;
    int bins = Math.min(tokens, (int) (width / 1.5));
    int bottom = top + strip + height;
    for (int b = 0; b < bins; b++) {
      int from = (int) ((long) b * tokens / bins);
      int to = Math.max(from + 1, (int) ((long) (b + 1) * tokens / bins));
      double x = left + width * from / tokens;
      double y = bottom;
      for (int a : order) {
        double share = 0;
        int count = 0;
        for (int t = from; t < to; t++) {
          share += shares[t][a];
          count += dominant[t] >= 0 ? 1 : 0;
        }
        if (share > 0) {
          double h = share / count * height;
          Figures.fill(g, looks[a], 0.9, x, y - h, width * (to - from) / tokens + 0.3, h);
          y -= h;
        }
      }
    }
    g.setFont(Figures.font(Font.PLAIN, 10));
    for (var part : trace.parts()) {
      int expected = trace.adapters().indexOf(part.task());
      double x = left + width * part.from() / tokens;
      double w = width * (part.to() - part.from()) / tokens;
      if (expected >= 0) {
        Figures.fill(g, looks[expected], 0.9, x, top, Math.max(0.5, w - 0.5), strip - 4.0);
        if (g.getFontMetrics().stringWidth(codes.get(expected)) + 4 < w) {
          g.setColor(Figures.ink(Figures.colour(looks[expected], 0.9)));
          centred(g, codes.get(expected), x + w / 2, top + strip - 7);
        }
      }
      g.setColor(Figures.INK);
      g.setStroke(new BasicStroke(1));
      g.draw(new Line2D.Double(x, top, x, bottom));
    }
    g.setColor(Figures.INK);
    int prompt = trace.promptTokens();
    if (prompt < tokens) {
      double x = left + width * prompt / tokens;
      g.setStroke(new BasicStroke(2));
      g.draw(new Line2D.Double(x, top - 3, x, bottom + 5));
    }
    g.setColor(Figures.DIM);
    for (int tick = 0; tick <= 2; tick++) {
      var label = tick * 50 + " %";
      g.drawString(
          label, left - 6 - g.getFontMetrics().stringWidth(label), bottom - height * tick / 2 + 4);
    }
    int step = 1;
    for (int i = 0; tokens / step > 12; i++) {
      step = (int) (new int[] {1, 2, 5}[i % 3] * Math.pow(10, i / 3));
    }
    for (int t = 0; t <= tokens; t += step) {
      centred(g, "" + t, left + width * t / Math.max(1, tokens), bottom + 14);
    }
    return bottom + 14;
  }

  private static void centred(Graphics2D g, String text, double x, double y) {
    g.drawString(text, (float) (x - g.getFontMetrics().stringWidth(text) / 2.0), (float) y);
  }

  /** Flows tokens into lines; returns the y below the last. */
  private int text(Graphics2D g, int from, int to, int y) {
    var plain = Figures.font(Font.PLAIN, 13);
    var small = Figures.font(Font.BOLD, 8);
    var metrics = g.getFontMetrics(plain);
    double x = MARGIN;
    for (int t = from; t < to; t++) {
      var text = trace.tokens().get(t).text().replace("\t", "    ").replace("\r", "");
      int adapter = dominant[t];
      boolean run = adapter >= 0 && !text.isEmpty() && (t == from || adapter != dominant[t - 1]);
      for (int at = 0; at < text.length(); ) {
        boolean newline = text.charAt(at) == '\n';
        int end = at;
        var code = run && at == 0 ? codes.get(adapter) : "";
        double codeWidth = code.isEmpty() ? 0 : g.getFontMetrics(small).stringWidth(code) + 2;
        double space = WIDTH - MARGIN - x - codeWidth;
        if (newline) {
          end++;
        } else {
          int stop = text.indexOf('\n', at);
          end = stop < 0 ? text.length() : stop;
          // a word that fits on no line is cut; others move to the next line whole
          if (metrics.stringWidth(text.substring(at, end)) > space && x > MARGIN) {
            x = MARGIN;
            y += LINE_HEIGHT;
            space = WIDTH - 2.0 * MARGIN - codeWidth;
          }
          while (end > at + 1 && metrics.stringWidth(text.substring(at, end)) > space) {
            end--;
          }
        }
        var piece = newline ? "↵" : text.substring(at, end);
        double width = metrics.stringWidth(piece) + codeWidth;
        Color ink = Figures.INK;
        if (adapter >= 0) {
          Figures.fill(g, looks[adapter], shares[t][adapter], x, y + 2, width, LINE_HEIGHT - 4.0);
          ink = Figures.ink(Figures.colour(looks[adapter], shares[t][adapter]));
        }
        g.setColor(newline ? Figures.DIM : ink);
        if (!code.isEmpty()) {
          g.setFont(small);
          g.drawString(code, (float) x + 1, y + 9);
        }
        g.setFont(plain);
        g.drawString(piece, (float) (x + codeWidth), y + LINE_HEIGHT - 6);
        x += width;
        at = end;
        if (newline) {
          x = MARGIN;
          y += LINE_HEIGHT;
        }
      }
    }
    return x > MARGIN ? y + LINE_HEIGHT : y;
  }

  private int legend(Graphics2D g, int y) {
    var shown = order.stream().filter(a -> mean[a] > 0).toList();
    int columns = 3;
    double width = (WIDTH - 2.0 * MARGIN) / columns;
    for (int i = 0; i < shown.size(); i++) {
      int a = shown.get(i);
      double x = MARGIN + i % columns * width;
      int top = y + i / columns * 20;
      Figures.fill(g, looks[a], 1, x, top, 40, 15);
      Figures.pen(g, Font.BOLD, 10, Figures.ink(Figures.colour(looks[a], 1)));
      centred(g, codes.get(a), x + 20, top + 11.5);
      Figures.pen(g, Font.PLAIN, 11, Figures.INK);
      g.drawString(
          Figures.fit(g, trace.adapters().get(a) + "  " + Figures.percent(mean[a]), width - 54),
          (float) x + 46,
          top + 12);
    }
    return y + (shown.size() + columns - 1) / columns * 20;
  }
}
