package org.meteora.eval.routes;

import com.fasterxml.jackson.core.JsonGenerator;
import java.io.IOException;
import java.nio.file.Path;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Jsonl;
import org.meteora.io.Texts;

/** A {@link RoutingMatrix} as JSON, as a picture and as a page. */
final class RoutingMatrixFiles {
  private static final int MODULES = RoutingMatrix.MODULES;

  private final RoutingMatrix matrix;
  private final List<String> tasks;
  private final List<String> adapters;

  RoutingMatrixFiles(RoutingMatrix matrix) {
    this.matrix = matrix;
    tasks = matrix.tasks();
    adapters = matrix.adapters();
  }

  /** Writes {@code routing.json}, {@code routing.png} and {@code routing.html}. */
  void write(String title, Map<String, Object> settings, Path folder) {
    AtomicFiles.requireWritableFolder(folder);
    writeJson(settings, folder.resolve("routing.json"));
    AtomicFiles.writeString(folder.resolve("routing.html"), html(title, settings));
    Routes.picture(() -> RoutingMatrixPng.write(matrix, title, folder.resolve("routing.png")));
  }

  /** Shares and firsts over all gates, for every layer, for every module, and for every gate. */
  private void writeJson(Map<String, Object> settings, Path file) {
    AtomicFiles.writeStream(
        file,
        out -> {
          try (var json =
              Jsonl.JSON
                  .getFactory()
                  .createGenerator(out)
                  .disable(JsonGenerator.Feature.AUTO_CLOSE_TARGET)) {
            json.writeStartObject();
            json.writeStringField("format", "meteora-routing-matrix-1");
            json.writeObjectField("settings", settings);
            json.writeObjectField("adapters", adapters);
            json.writeObjectField("tasks", tasks);
            json.writeObjectField("modules", RoutingRecorder.MODULES);
            json.writeNumberField("layers", matrix.layers());
            json.writeFieldName("all");
            shares(json, RoutingTrace.ALL, RoutingTrace.ALL);
            json.writeArrayFieldStart("by_layer");
            for (int layer = 0; layer < matrix.layers(); layer++) {
              shares(json, layer, RoutingTrace.ALL);
            }
            json.writeEndArray();
            json.writeArrayFieldStart("by_module");
            for (int module = 0; module < MODULES; module++) {
              shares(json, RoutingTrace.ALL, module);
            }
            json.writeEndArray();
            json.writeArrayFieldStart("by_gate");
            for (int layer = 0; layer < matrix.layers(); layer++) {
              json.writeStartArray();
              for (int module = 0; module < MODULES; module++) {
                shares(json, layer, module);
              }
              json.writeEndArray();
            }
            json.writeEndArray();
            json.writeEndObject();
          }
        });
  }

  private void shares(JsonGenerator json, int layer, int module) throws IOException {
    json.writeStartObject();
    json.writeArrayFieldStart("counted");
    for (var each : tasks) {
      json.writeNumber(matrix.count(each, layer, module));
    }
    json.writeEndArray();
    json.writeArrayFieldStart("right_first");
    for (var each : tasks) {
      if (adapters.contains(each)) {
        json.writeNumber((float) matrix.rightFirst(each, layer, module));
      } else {
        json.writeNull();
      }
    }
    json.writeEndArray();
    for (boolean first : new boolean[] {false, true}) {
      json.writeArrayFieldStart(first ? "first" : "share");
      for (var each : tasks) {
        json.writeStartArray();
        for (double value : matrix.sum(each, layer, module, first)) {
          json.writeNumber((float) value);
        }
        json.writeEndArray();
      }
      json.writeEndArray();
    }
    json.writeEndObject();
  }

  /** One self-contained page: the heat map with selectors for layer, module and measure. */
  String html(String title, Map<String, Object> settings) {
    var meta = new TreeMap<String, Object>();
    meta.put("adapters", adapters);
    meta.put("tasks", tasks);
    meta.put("codes", Palette.codes(adapters));
    meta.put("modules", RoutingRecorder.MODULES);
    meta.put("layers", matrix.layers());
    meta.put("settings", settings);
    return RoutesHtml.fill(
        "matrix.html",
        Map.of(
            "title",
            Texts.escapeHtml(title),
            "meta",
            RoutesHtml.embedded(meta),
            "share",
            quantised(false),
            "first",
            quantised(true),
            "counts",
            RoutesHtml.embedded(counts())));
  }

  private long[][] counts() {
    var counts = new long[matrix.layers() * MODULES][tasks.size()];
    for (int g = 0; g < counts.length; g++) {
      for (int t = 0; t < tasks.size(); t++) {
        counts[g][t] = matrix.count(tasks.get(t), g / MODULES, g % MODULES);
      }
    }
    return counts;
  }

  /** Gates × tasks × adapters in 16 bits, little end first. */
  private String quantised(boolean first) {
    var bytes = new byte[matrix.layers() * MODULES * tasks.size() * adapters.size() * 2];
    int at = 0;
    for (int g = 0; g < matrix.layers() * MODULES; g++) {
      for (var each : tasks) {
        for (double value : matrix.sum(each, g / MODULES, g % MODULES, first)) {
          int quantum = (int) Math.round(Math.clamp(value, 0, 1) * 65535);
          bytes[at++] = (byte) quantum;
          bytes[at++] = (byte) (quantum >> 8);
        }
      }
    }
    return Base64.getEncoder().encodeToString(bytes);
  }
}
