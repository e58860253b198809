package org.meteora.eval.routes;

import com.fasterxml.jackson.annotation.JsonProperty;
import com.fasterxml.jackson.annotation.JsonUnwrapped;
import java.io.OutputStreamWriter;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
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
    json.put("parts", trace.verdicts().stream().map(verdict -> judged(trace, verdict)).toList());
    json.put(
        "routing", IntStream.range(0, trace.layers()).mapToObj(l -> gates(trace, l)).iterator());
    Jsonl.write(file, json);
  }

  /** A token, and the shares that are not 0 by adapter. */
  private record Token(@JsonUnwrapped RoutedToken token, Map<String, Float> shares) {}

  private static Token token(RoutingTrace trace, int index) {
    var shares = trace.shares(RoutingTrace.ALL, RoutingTrace.ALL, index);
    var named = new LinkedHashMap<String, Float>();
    for (int a = 0; a < shares.length; a++) {
      if (shares[a] > 0) {
        named.put(trace.adapters().get(a), (float) shares[a]);
      }
    }
    return new Token(trace.tokens().get(index), named);
  }

  private record Judged(
      @JsonUnwrapped Part part,
      String dominant,
      @JsonProperty("expected_share") float expectedShare,
      @JsonProperty("right_tokens") float rightTokens,
      boolean right) {}

  private static Judged judged(RoutingTrace trace, RoutingTrace.Verdict verdict) {
    return new Judged(
        verdict.part(),
        verdict.dominant() < 0 ? "" : trace.adapters().get(verdict.dominant()),
        (float) verdict.expectedShare(),
        (float) verdict.rightTokens(),
        verdict.right());
  }

  /** For each token topK adapters, and their weights. */
  private record Chosen(List<short[]> indices, List<float[]> weights) {}

  /** A layer's choices by module. */
  private static Map<String, Chosen> gates(RoutingTrace trace, int layer) {
    int k = trace.topK();
    var json = new LinkedHashMap<String, Chosen>();
    for (var module : RoutingRecorder.MODULES) {
      int gate = layer * RoutingRecorder.MODULES.size() + json.size();
      var indices = new ArrayList<short[]>();
      var weights = new ArrayList<float[]>();
      for (int at = 0; at < trace.routedTokens() * k; at += k) {
        indices.add(Arrays.copyOfRange(trace.indices()[gate], at, at + k));
        weights.add(Arrays.copyOfRange(trace.weights()[gate], at, at + k));
      }
      json.put(module, new Chosen(indices, weights));
    }
    return json;
  }

  /** One line for each token, layer, module and rank. */
  public static void writeCsv(RoutingTrace trace, Path file) {
    var names = trace.adapters().stream().map(RoutesData::quoted).toList();
    AtomicFiles.writeStream(
        file,
        out -> {
          var csv = new OutputStreamWriter(out, StandardCharsets.UTF_8);
          csv.write("token,id,output,layer,module,rank,adapter,weight\n");
          for (int t = 0; t < trace.routedTokens(); t++) {
            var token = trace.tokens().get(t);
            var start = t + "," + token.id() + "," + token.output() + ",";
            for (int layer = 0; layer < trace.layers(); layer++) {
              for (int module = 0; module < RoutingRecorder.MODULES.size(); module++) {
                var gate = start + layer + "," + RoutingRecorder.MODULES.get(module) + ",";
                for (int k = 0; k < trace.topK(); k++) {
                  int adapter = trace.adapter(layer, module, t, k);
                  if (adapter >= 0) {
                    csv.write(gate + k + "," + names.get(adapter) + ",");
                    csv.write(trace.weight(layer, module, t, k) + "\n");
                  }
                }
              }
            }
          }
          csv.flush();
        });
  }

  private static String quoted(String text) {
    return text.matches("[^\",\\r\\n]*") ? text : "\"" + text.replace("\"", "\"\"") + "\"";
  }
}
