package org.meteora.eval.routes;

import java.io.IOException;
import java.io.OutputStreamWriter;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.IntStream;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Jsonl;

/** Writes a trace's numbers as JSON and CSV; docs/routing.md describes both. */
public final class RoutesData {
  private RoutesData() {}

  /** Everything: settings, tokens, parts, shares over all gates, every gate's top-k. */
  public static void writeJson(RoutingTrace trace, Path file) {
    var json = new LinkedHashMap<String, Object>();
    json.put("format", "meteora-routes-1");
    json.put("settings", trace.settings());
    json.put("adapters", trace.adapters());
    json.put("modules", RoutingRecorder.MODULES);
    json.put("layers", trace.layers());
    json.put("top_k", trace.topK());
    json.put("prompt_tokens", trace.promptTokens());
    json.put("routed_tokens", trace.routedTokens());
    json.put(
        "tokens",
        IntStream.range(0, trace.tokens().size()).mapToObj(t -> token(trace, t)).toList());
    json.put("parts", trace.verdicts().stream().map(verdict -> part(trace, verdict)).toList());
    json.put(
        "routing", IntStream.range(0, trace.layers()).mapToObj(l -> gates(trace, l)).iterator());
    Jsonl.write(file, json);
  }

  private static Map<String, Object> token(RoutingTrace trace, int index) {
    var token = trace.tokens().get(index);
    var shares = trace.shares(RoutingTrace.ALL, RoutingTrace.ALL, index);
    var named = new LinkedHashMap<String, Float>();
    for (int a = 0; a < shares.length; a++) {
      if (shares[a] > 0) {
        named.put(trace.adapters().get(a), (float) shares[a]);
      }
    }
    var json = new LinkedHashMap<String, Object>();
    json.put("id", token.id());
    json.put("piece", token.piece());
    json.put("text", token.text());
    json.put("output", token.output());
    json.put("shares", named);
    return json;
  }

  private static Map<String, Object> part(RoutingTrace trace, RoutingTrace.Verdict verdict) {
    var part = verdict.part();
    int dominant = verdict.dominant();
    var json = new LinkedHashMap<String, Object>();
    json.put("from", part.from());
    json.put("to", part.to());
    json.put("label", part.label());
    json.put("task", part.task());
    json.put("output", part.output());
    json.put("dominant", dominant < 0 ? "" : trace.adapters().get(dominant));
    json.put("expected_share", (float) verdict.expectedShare());
    json.put("right_tokens", (float) verdict.rightTokens());
    json.put("right", verdict.right());
    return json;
  }

  /** A layer's choices by module: for each token topK adapters, and their weights. */
  private static Map<String, Object> gates(RoutingTrace trace, int layer) {
    int k = trace.topK();
    var json = new LinkedHashMap<String, Object>();
    for (int module = 0; module < RoutingRecorder.MODULES.size(); module++) {
      int gate = layer * RoutingRecorder.MODULES.size() + module;
      var indices = new short[trace.routedTokens()][];
      var weights = new float[trace.routedTokens()][];
      Arrays.setAll(indices, t -> Arrays.copyOfRange(trace.indices()[gate], t * k, (t + 1) * k));
      Arrays.setAll(weights, t -> Arrays.copyOfRange(trace.weights()[gate], t * k, (t + 1) * k));
      var both = new LinkedHashMap<String, Object>();
      both.put("indices", indices);
      both.put("weights", weights);
      json.put(RoutingRecorder.MODULES.get(module), both);
    }
    return json;
  }

  /** One line for each token, layer, module and rank. */
  public static void writeCsv(RoutingTrace trace, Path file) {
    AtomicFiles.writeStream(
        file,
        out -> {
          var csv = new OutputStreamWriter(out, StandardCharsets.UTF_8);
          csv.write("token,id,output,layer,module,rank,adapter,weight\n");
          var names = trace.adapters().stream().map(RoutesData::quoted).toList();
          for (int t = 0; t < trace.routedTokens(); t++) {
            var token = trace.tokens().get(t);
            var start = t + "," + token.id() + "," + token.output() + ",";
            for (int layer = 0; layer < trace.layers(); layer++) {
              for (int module = 0; module < RoutingRecorder.MODULES.size(); module++) {
                line(csv, trace, names, start, t, layer, module);
              }
            }
          }
          csv.flush();
        });
  }

  private static void line(
      OutputStreamWriter csv,
      RoutingTrace trace,
      List<String> names,
      String start,
      int token,
      int layer,
      int module)
      throws IOException {
    for (int k = 0; k < trace.topK(); k++) {
      int adapter = trace.adapter(layer, module, token, k);
      if (adapter >= 0) {
        csv.write(start);
        csv.write(layer + "," + RoutingRecorder.MODULES.get(module) + "," + k + ",");
        csv.write(names.get(adapter));
        csv.write("," + trace.weight(layer, module, token, k) + "\n");
      }
    }
  }

  private static String quoted(String text) {
    return text.matches("[^\",\\r\\n]*") ? text : "\"" + text.replace("\"", "\"\"") + "\"";
  }
}
