package org.meteora.eval.routes;

import static org.meteora.io.Texts.escapeHtml;

import com.fasterxml.jackson.annotation.JsonUnwrapped;
import java.io.BufferedOutputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.io.UncheckedIOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
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
    meta.put(
        "parts",
        trace.parts().stream()
            .map(part -> new Expecting(part, trace.adapters().indexOf(part.task())))
            .toList());
    meta.put("settings", trace.settings());
    meta.put(
        "colours",
        Palette.COLOURS.stream().map(c -> List.of(c >> 16 & 255, c >> 8 & 255, c & 255)).toList());
    meta.put("patterns", Palette.PATTERNS);
    var values =
        Map.of("title", escapeHtml(title), "meta", embedded(meta), "data", encoding.base64(trace));
    AtomicFiles.writeString(file, HtmlPage.filled(RoutesHtml.class, "routes.html", values));
  }

  /** A part, and the index of the adapter that it expects; −1 for none. */
  private record Expecting(@JsonUnwrapped Part part, int expected) {}

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
      int scale = weightBytes == 2 ? 65535 : 255;
      try (var out = new BufferedOutputStream(new GZIPOutputStream(bytes), 1 << 16)) {
        for (int gate = 0; gate < trace.indices().length; gate++) {
          for (int k = 0; k < kept; k++) {
            for (int t = 0; t < trace.routedTokens(); t++) {
              write(out, trace.indices()[gate][t * trace.topK() + k], indexBytes);
            }
          }
          for (int k = 0; k < planes(trace); k++) {
            for (int t = 0; t < trace.routedTokens(); t++) {
              float weight = Math.clamp(trace.weights()[gate][t * trace.topK() + k], 0f, 1f);
              write(out, Math.round(weight * scale), weightBytes);
            }
          }
        }
      } catch (IOException e) {
        throw new UncheckedIOException(e);
      }
      return Base64.getEncoder().encodeToString(bytes.toByteArray());
    }

    private static void write(OutputStream out, int value, int bytes) throws IOException {
      out.write(value);
      if (bytes == 2) {
        out.write(value >> 8);
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
