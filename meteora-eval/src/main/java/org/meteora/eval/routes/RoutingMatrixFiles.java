package org.meteora.eval.routes;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.meteora.eval.report.HtmlPage;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Jsonl;
import org.meteora.io.Texts;

/**
 * A {@link RoutingMatrix} as JSON, as a picture and as a page.
 *
 * @param settings what the run depended on
 */
record RoutingMatrixFiles(RoutingMatrix matrix, String title, Map<String, Object> settings) {
  private static final int MODULES = RoutingMatrix.MODULES;

  void write(Path folder) {
    AtomicFiles.requireWritableFolder(folder);
    writeJson(folder.resolve("routing.json"));
    AtomicFiles.writeString(folder.resolve("routing.html"), html());
    Routes.picture(() -> RoutingMatrixPng.write(matrix, title, folder.resolve("routing.png")));
  }

  /** Shares and firsts over all gates, for every layer, for every module, and for every gate. */
  private void writeJson(Path file) {
    var json = new LinkedHashMap<String, Object>();
    json.put("format", "meteora-routing-matrix-1");
    json.put("settings", settings);
    json.put("adapters", matrix.adapters());
    json.put("tasks", matrix.tasks());
    json.put("modules", RoutingRecorder.MODULES);
    json.put("layers", matrix.layers());
    json.put("all", shares(RoutingTrace.ALL, RoutingTrace.ALL));
    json.put("by_layer", layers().map(layer -> shares(layer, RoutingTrace.ALL)).toList());
    json.put("by_module", modules().map(module -> shares(RoutingTrace.ALL, module)).toList());
    json.put(
        "by_gate",
        layers().map(layer -> modules().map(module -> shares(layer, module)).toList()).iterator());
    Jsonl.write(file, json);
  }

  private Stream<Integer> layers() {
    return IntStream.range(0, matrix.layers()).boxed();
  }

  private static Stream<Integer> modules() {
    return IntStream.range(0, MODULES).boxed();
  }

  private Map<String, Object> shares(int layer, int module) {
    var json = new LinkedHashMap<String, Object>();
    json.put("counted", counts(layer, module));
    json.put(
        "right_first",
        matrix.tasks().stream()
            .map(
                task ->
                    matrix.adapters().contains(task)
                        ? (float) matrix.rightFirst(task, layer, module)
                        : null)
            .toList());
    for (boolean first : new boolean[] {false, true}) {
      json.put(
          first ? "first" : "share",
          matrix.tasks().stream()
              .map(task -> Arrays.stream(matrix.sum(task, layer, module, first)))
              .map(sums -> sums.mapToObj(each -> (float) each).toList())
              .toList());
    }
    return json;
  }

  /** One self-contained page: the heat map with selectors for layer, module and measure. */
  String html() {
    var meta = new TreeMap<String, Object>();
    meta.put("adapters", matrix.adapters());
    meta.put("tasks", matrix.tasks());
    meta.put("codes", Palette.codes(matrix.adapters()));
    meta.put("modules", RoutingRecorder.MODULES);
    meta.put("layers", matrix.layers());
    meta.put("settings", settings);
    var values = new TreeMap<String, String>();
    values.put("title", Texts.escapeHtml(title));
    values.put("meta", RoutesHtml.embedded(meta));
    values.put("share", quantised(false));
    values.put("first", quantised(true));
    var counts = layers().flatMap(layer -> modules().map(module -> counts(layer, module)));
    values.put("counts", RoutesHtml.embedded(counts.toList()));
    return HtmlPage.filled(RoutesHtml.class, "matrix.html", values);
  }

  /** By task. */
  private List<Long> counts(int layer, int module) {
    return matrix.tasks().stream().map(task -> matrix.count(task, layer, module)).toList();
  }

  /** Gates × tasks × adapters in 16 bits, little end first. */
  private String quantised(boolean first) {
    int gates = matrix.layers() * MODULES;
    var bytes =
        ByteBuffer.allocate(gates * matrix.tasks().size() * matrix.adapters().size() * 2)
            .order(ByteOrder.LITTLE_ENDIAN);
    for (int g = 0; g < gates; g++) {
      for (var each : matrix.tasks()) {
        for (double value : matrix.sum(each, g / MODULES, g % MODULES, first)) {
          bytes.putShort((short) Math.round(Math.clamp(value, 0, 1) * 65535));
        }
      }
    }
    return Base64.getEncoder().encodeToString(bytes.array());
  }
}
