package org.meteora.train.listener;

import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.BooleanSupplier;
import javax.imageio.ImageIO;
import org.knowm.xchart.AnnotationLine;
import org.knowm.xchart.BitmapEncoder;
import org.knowm.xchart.XYChart;
import org.knowm.xchart.XYChartBuilder;
import org.knowm.xchart.style.Styler;
import org.knowm.xchart.style.markers.SeriesMarkers;
import org.meteora.UserException;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Fonts;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Draws {@code loss.png} and {@code gate-accuracy.png} from {@code metrics.jsonl}, at every
 * evaluation after the first step and at the end of a run that was not stopped: a JVM that shuts
 * down cannot draw.
 */
public final class Curves implements TrainingListener {
  static {
    Fonts.prepare();
  }

  private static final Logger LOG = LoggerFactory.getLogger(Curves.class);
  private static final int POINTS = 500;

  private final Path metrics;
  private final Path folder;
  private final BooleanSupplier stop;
  private boolean drawn;

  /**
   * @param metrics the file that {@link MetricsFile} writes; that listener comes first
   */
  public Curves(Path metrics, Path folder, BooleanSupplier stop) {
    this.metrics = metrics;
    this.folder = folder;
    this.stop = stop;
  }

  @Override
  public void onStep(StepReport report) {
    drawn = false;
  }

  @Override
  public void onEvaluation(long step, Evaluation evaluation) {
    if (step > 0) { // a point is no curve
      draw();
    }
  }

  @Override
  public void onEnd() {
    if (!drawn) {
      draw();
    }
  }

  private record Line(List<Double> x, List<Double> y) {
    Line() {
      this(new ArrayList<>(), new ArrayList<>());
    }
  }

  private void draw() {
    if (stop.getAsBoolean()) {
      return;
    }
    drawn = true;
    try {
      Map<String, Line> losses = new LinkedHashMap<>();
      Map<String, Line> accuracies = new LinkedHashMap<>();
      var parts = new ArrayList<Double>();
      for (var node : MetricsFile.read(metrics)) {
        double step = node.path("step").asDouble();
        var event = node.path("event").asText();
        if (event.equals(MetricsFile.PART)) {
          parts.add(step);
        }
        boolean eval = event.equals("eval");
        var suffix = eval ? " (held out)" : "";
        if (!eval) {
          add(losses, "language model", step, node.path("lm_loss"), 1);
        }
        add(losses, "gates" + suffix, step, node.path("gate_loss"), 1);
        for (var each : MetricsFile.HELD_OUT) {
          add(losses, each.getValue(), step, node.path(each.getKey()), 1);
        }
        add(accuracies, "mean of the gates" + suffix, step, node.path("gate_accuracy"), 100);
        add(accuracies, "joint vote" + suffix, step, node.path("dominant_accuracy"), 100);
        if (eval) {
          node.path("dominant_accuracy_by_task")
              .properties()
              .forEach(e -> add(accuracies, e.getKey(), step, e.getValue(), 100));
        }
      }
      save(losses, parts, "Loss", "cross-entropy", "loss.png");
      save(
          accuracies,
          parts,
          "Tokens whose gates, each and jointly, chose the task's adapter",
          "%",
          "gate-accuracy.png");
    } catch (UserException e) {
      LOG.warn("{}; training goes on", e.getMessage());
    } catch (RuntimeException | LinkageError e) {
      // java.awt needs fonts, which a small container may lack; the numbers are in metrics.jsonl
      LOG.warn("cannot draw the curves: {}", e.toString());
    }
  }

  private static void add(
      Map<String, Line> lines, String name, double x, JsonNode y, double factor) {
    if (y.isNumber()) {
      var line = lines.computeIfAbsent(name, n -> new Line());
      line.x().add(x);
      line.y().add(factor * y.asDouble());
    }
  }

  /**
   * @param parts where another part of the run begins
   */
  private void save(
      Map<String, Line> lines, List<Double> parts, String title, String unit, String name) {
    if (lines.isEmpty()) {
      return;
    }
    XYChart chart =
        new XYChartBuilder()
            .width(1100)
            .height(600)
            .title(title + (parts.isEmpty() ? "" : " (from the line on adapters are trained too)"))
            .xAxisTitle("step")
            .yAxisTitle(unit)
            .build();
    chart.getStyler().setLegendPosition(Styler.LegendPosition.OutsideE);
    chart.getStyler().setYAxisMin(0.0);
    lines.forEach(
        (label, line) ->
            chart
                .addSeries(label, thin(line.x()), thin(line.y()))
                .setMarker(line.x().size() < 40 ? SeriesMarkers.CIRCLE : SeriesMarkers.NONE));
    parts.forEach(step -> chart.addAnnotation(new AnnotationLine(step, true, false)));
    ImageIO.setUseCache(false); // else it needs a folder for temporary files
    AtomicFiles.writeStream(
        folder.resolve(name),
        out -> BitmapEncoder.saveBitmap(chart, out, BitmapEncoder.BitmapFormat.PNG));
  }

  /** Means over equal stretches, so that a long run stays readable. */
  private static List<Double> thin(List<Double> values) {
    if (values.size() <= POINTS) {
      return values;
    }
    var result = new ArrayList<Double>();
    for (int i = 0; i < POINTS; i++) {
      int from = (int) ((long) values.size() * i / POINTS);
      int to = (int) ((long) values.size() * (i + 1) / POINTS);
      result.add(values.subList(from, to).stream().mapToDouble(it -> it).average().orElse(0));
    }
    return result;
  }
}
