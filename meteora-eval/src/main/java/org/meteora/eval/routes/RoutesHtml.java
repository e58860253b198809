package org.meteora.eval.routes;

import static org.meteora.io.Texts.escapeHtml;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.stream.IntStream;
import java.util.zip.GZIPOutputStream;
import org.meteora.eval.report.HtmlPage;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Jsonl;

/**
 * Writes a trace as one self-contained page. The gates' choices travel as bytes, gzip and Base64:
 * weights in 16 bits, or in 8 when the page would grow beyond a few megabytes.
 */
public final class RoutesHtml {
  /** Bytes of routing, before compression, that a page carries before it saves on precision. */
  private static final long BUDGET = 3_300_000;

  private RoutesHtml() {}

  public static void write(RoutingTrace trace, String title, Path file) {
    AtomicFiles.writeString(file, page(trace, title));
  }

  static String page(RoutingTrace trace, String title) {
    var encoding = Encoding.of(trace);
    var meta = new TreeMap<String, Object>();
    meta.put("adapters", trace.adapters());
    meta.put("codes", Palette.codes(trace.adapters()));
    meta.put("looks", Palette.looks(trace));
    meta.put("layers", trace.layers());
    meta.put("modules", RoutingRecorder.MODULES);
    meta.put("topK", trace.topK());
    meta.put("kept", encoding.kept);
    meta.put("weightBytes", encoding.weightBytes);
    meta.put("indexBytes", encoding.indexBytes);
    meta.put("routed", trace.routedTokens());
    meta.put("promptTokens", trace.promptTokens());
    meta.put("texts", trace.tokens().stream().map(RoutedToken::text).toList());
    meta.put("pieces", trace.tokens().stream().map(RoutedToken::piece).toList());
    meta.put("ids", trace.tokens().stream().map(RoutedToken::id).toList());
    meta.put("parts", trace.parts().stream().map(part -> part(trace, part)).toList());
    meta.put("settings", trace.settings());
    meta.put("colours", IntStream.of(Palette.COLOURS).mapToObj(RoutesHtml::rgb).toList());
    meta.put("patterns", Palette.PATTERNS);
    return HtmlPage.filled(
        RoutesHtml.class,
        "routes.html",
        Map.of("title", escapeHtml(title), "meta", embedded(meta), "data", encoding.base64(trace)));
  }

  private static Map<String, Object> part(RoutingTrace trace, Part part) {
    return Map.of(
        "from", part.from(),
        "to", part.to(),
        "label", part.label(),
        "task", part.task(),
        "expected", trace.adapters().indexOf(part.task()),
        "output", part.output());
  }

  static List<Integer> rgb(int colour) {
    return List.of(colour >> 16 & 255, colour >> 8 & 255, colour & 255);
  }

  /** How weights and indices are written so that the page stays small. */
  private record Encoding(int kept, int weightBytes, int indexBytes) {
    static Encoding of(RoutingTrace trace) {
      int indexBytes = trace.adapters().size() > 255 ? 2 : 1;
      long cells = (long) trace.layers() * RoutingRecorder.MODULES.size() * trace.routedTokens();
      var choices = new ArrayList<Encoding>();
      choices.add(new Encoding(trace.topK(), 2, indexBytes));
      for (int kept = trace.topK(); kept >= 1; kept--) {
        choices.add(new Encoding(kept, 1, indexBytes));
      }
      return choices.stream()
          .filter(e -> cells * (e.kept * indexBytes + e.planes(trace) * e.weightBytes) <= BUDGET)
          .findFirst()
          .orElse(choices.getLast());
    }

    /** The last weight of a whole top-k is what the others leave of 1. */
    int planes(RoutingTrace trace) {
      return kept == trace.topK() ? kept - 1 : kept;
    }

    /** For each gate: a plane of indices for each rank, then a plane of weights for each rank. */
    String base64(RoutingTrace trace) {
      var bytes = new ByteArrayOutputStream(1 << 16);
      int planes = planes(trace);
      int scale = weightBytes == 2 ? 65535 : 255;
      try (var out = new GZIPOutputStream(bytes, 1 << 16)) {
        var plane = new byte[trace.routedTokens() * 2];
        for (int layer = 0; layer < trace.layers(); layer++) {
          for (int module = 0; module < RoutingRecorder.MODULES.size(); module++) {
            for (int k = 0; k < kept; k++) {
              for (int t = 0; t < trace.routedTokens(); t++) {
                put(plane, t, trace.adapter(layer, module, t, k), indexBytes);
              }
              out.write(plane, 0, trace.routedTokens() * indexBytes);
            }
            for (int k = 0; k < planes; k++) {
              for (int t = 0; t < trace.routedTokens(); t++) {
                float weight = Math.clamp(trace.weight(layer, module, t, k), 0f, 1f);
                put(plane, t, Math.round(weight * scale), weightBytes);
              }
              out.write(plane, 0, trace.routedTokens() * weightBytes);
            }
          }
        }
      } catch (IOException e) {
        throw new UncheckedIOException(e);
      }
      return Base64.getEncoder().encodeToString(bytes.toByteArray());
    }

    private static void put(byte[] plane, int at, int value, int bytes) {
      plane[at * bytes] = (byte) value;
      if (bytes == 2) {
        plane[at * 2 + 1] = (byte) (value >> 8);
      }
    }
  }

  /** JSON that cannot end the script element it stands in. */
  static String embedded(Object value) {
    return Jsonl.JSON
        .valueToTree(value)
        .toString()
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029");
  }
}
