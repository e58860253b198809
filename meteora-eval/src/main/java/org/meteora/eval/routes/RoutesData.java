package org.meteora.eval.routes;

import java.io.IOException;
import java.io.OutputStreamWriter;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Jsonl;

/** Writes a trace's numbers as JSON and CSV; docs/routing.md describes both. */
public final class RoutesData {
  private RoutesData() {}

  /** Everything: settings, tokens, parts, shares over all gates, every gate's top-k. */
  public static void writeJson(RoutingTrace trace, Path file) {
    AtomicFiles.writeStream(
        file,
        out -> {
          try (var json =
              Jsonl.JSON
                  .getFactory()
                  .createGenerator(out)
                  .disable(com.fasterxml.jackson.core.JsonGenerator.Feature.AUTO_CLOSE_TARGET)) {
            json.writeStartObject();
            json.writeStringField("format", "meteora-routes-1");
            json.writeObjectField("settings", trace.settings());
            json.writeObjectField("adapters", trace.adapters());
            json.writeObjectField("modules", RoutingRecorder.MODULES);
            json.writeNumberField("layers", trace.layers());
            json.writeNumberField("top_k", trace.topK());
            json.writeNumberField("prompt_tokens", trace.promptTokens());
            json.writeNumberField("routed_tokens", trace.routedTokens());
            json.writeArrayFieldStart("tokens");
            for (int t = 0; t < trace.tokens().size(); t++) {
              var token = trace.tokens().get(t);
              json.writeStartObject();
              json.writeNumberField("id", token.id());
              json.writeStringField("piece", token.piece());
              json.writeStringField("text", token.text());
              json.writeBooleanField("output", token.output());
              json.writeObjectFieldStart("shares");
              var shares = trace.shares(RoutingTrace.ALL, RoutingTrace.ALL, t);
              for (int a = 0; a < shares.length; a++) {
                if (shares[a] > 0) {
                  json.writeNumberField(trace.adapters().get(a), (float) shares[a]);
                }
              }
              json.writeEndObject();
              json.writeEndObject();
            }
            json.writeEndArray();
            json.writeArrayFieldStart("parts");
            for (var verdict : trace.verdicts()) {
              var part = verdict.part();
              json.writeStartObject();
              json.writeNumberField("from", part.from());
              json.writeNumberField("to", part.to());
              json.writeStringField("label", part.label());
              json.writeStringField("task", part.task());
              json.writeBooleanField("output", part.output());
              json.writeStringField("dominant", name(trace, verdict.dominant()));
              json.writeNumberField("expected_share", (float) verdict.expectedShare());
              json.writeNumberField("right_tokens", (float) verdict.rightTokens());
              json.writeBooleanField("right", verdict.right());
              json.writeEndObject();
            }
            json.writeEndArray();
            json.writeArrayFieldStart("routing");
            for (int layer = 0; layer < trace.layers(); layer++) {
              json.writeStartObject();
              for (int module = 0; module < RoutingRecorder.MODULES.size(); module++) {
                json.writeObjectFieldStart(RoutingRecorder.MODULES.get(module));
                json.writeArrayFieldStart("indices");
                for (int t = 0; t < trace.routedTokens(); t++) {
                  json.writeStartArray();
                  for (int k = 0; k < trace.topK(); k++) {
                    json.writeNumber(trace.adapter(layer, module, t, k));
                  }
                  json.writeEndArray();
                }
                json.writeEndArray();
                json.writeArrayFieldStart("weights");
                for (int t = 0; t < trace.routedTokens(); t++) {
                  json.writeStartArray();
                  for (int k = 0; k < trace.topK(); k++) {
                    json.writeNumber(trace.weight(layer, module, t, k));
                  }
                  json.writeEndArray();
                }
                json.writeEndArray();
                json.writeEndObject();
              }
              json.writeEndObject();
            }
            json.writeEndArray();
            json.writeEndObject();
          }
        });
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
      java.util.List<String> names,
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

  private static String name(RoutingTrace trace, int adapter) {
    return adapter < 0 ? "" : trace.adapters().get(adapter);
  }

  private static String quoted(String text) {
    return text.matches("[^\",\\r\\n]*") ? text : "\"" + text.replace("\"", "\"\"") + "\"";
  }
}
