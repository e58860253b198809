package org.meteora.eval.compare;

import com.fasterxml.jackson.core.JsonProcessingException;
import java.util.List;
import java.util.Map;
import org.meteora.io.Jsonl;
import org.meteora.io.Texts;

/**
 * Scores that the MeteoRA paper gives (arXiv 2405.13053) for composite_10 with Llama 3 8B, by task
 * and score. Its BLEU looks at one answer alone: it stands beside our {@code bleu_as_published}.
 *
 * @param name of the column
 */
record Published(String name, Map<String, Map<String, Double>> scores) {
  /** The evaluation that these are scores of. */
  static final String TASK = "composite_10";

  /** BLEU as the original evaluation computes it. */
  static final String BLEU = "BLEU as published";

  static final List<Published> ALL = all();

  private static List<Published> all() {
    try {
      var text = Texts.resource(Published.class, "published.json");
      return List.of(Jsonl.JSON.readValue(text, Published[].class));
    } catch (JsonProcessingException e) {
      throw new IllegalStateException(e);
    }
  }
}
