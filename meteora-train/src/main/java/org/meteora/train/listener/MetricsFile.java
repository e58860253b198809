package org.meteora.train.listener;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Jsonl;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * {@code metrics.jsonl}: one JSON object a line for every step ({@code "event": "step"}) and
 * evaluation ({@code "eval"}), and where a second part begins ({@code "part"}). A resumed run goes
 * on with the file: lines of steps that are made again, and a last line that was cut off, are taken
 * out first.
 */
public final class MetricsFile implements TrainingListener {
  private static final Logger LOG = LoggerFactory.getLogger(MetricsFile.class);

  /** The keys of an evaluation's losses of texts, and what to call them. */
  static final List<Map.Entry<String, String>> HELD_OUT =
      List.of(
          Map.entry("answer_loss", "answers (held out)"),
          Map.entry("oracle_answer_loss", "answers, own adapter"),
          Map.entry("base_answer_loss", "answers, base"),
          Map.entry("prompt_loss", "prompts (held out)"));

  /** The event of a part's begin. */
  static final String PART = "part";

  private final Path file;
  private boolean failed;

  public MetricsFile(Path file) {
    this.file = file;
  }

  @Override
  public void onStart(long step, long steps) {
    var kept = new StringBuilder();
    for (var node : read(file)) {
      if (node.path("event").asText().equals(PART) && node.path("step").asLong() >= step) {
        break; // it begins again
      }
      if (node.path("step").asLong() <= step) {
        kept.append(node).append('\n');
      }
    }
    AtomicFiles.writeString(file, step == 0 ? "" : kept.toString());
  }

  /** The file's whole lines; none when there is no file. */
  static List<JsonNode> read(Path file) {
    var result = new ArrayList<JsonNode>();
    if (!Files.isRegularFile(file)) {
      return result;
    }
    try (var lines = Files.lines(file, StandardCharsets.UTF_8)) {
      for (var line : (Iterable<String>) lines::iterator) {
        try {
          var node = Jsonl.JSON.readTree(line);
          if (node != null && node.isObject()) {
            result.add(node);
          }
        } catch (JsonProcessingException e) {
          // a line that a killed process left half written
        }
      }
    } catch (IOException | java.io.UncheckedIOException e) {
      LOG.warn("cannot read {}: {}", file, AtomicFiles.reason(e));
    }
    return result;
  }

  @Override
  public void onPart(Part part, long kept) {
    var node = Jsonl.JSON.createObjectNode().put("event", PART).put("step", part.before());
    node.setAll((ObjectNode) Jsonl.JSON.valueToTree(part.describe()));
    append(node.put("kept_step", kept));
  }

  @Override
  public void onStep(StepReport report) {
    append(node(report));
  }

  @Override
  public void onEvaluation(long step, Evaluation evaluation) {
    append(node(step, evaluation));
  }

  static ObjectNode node(StepReport report) {
    var node = node("step", report.step(), report.losses());
    put(node, "learning_rate", report.learningRate());
    put(node, "grad_norm", report.gradientNorm());
    put(node, "seconds", report.seconds());
    put(node, "tokens_per_second", report.tokensPerSecond());
    put(node, "padding", report.padding());
    return node.put("memory_bytes", report.memoryBytes());
  }

  static ObjectNode node(long step, Evaluation evaluation) {
    var node = node("eval", step, evaluation.losses());
    put(node, "", evaluation.losses().texts());
    evaluation.oracle().ifPresent(texts -> put(node, "oracle_", texts));
    evaluation.base().ifPresent(texts -> put(node, "base_", texts));
    return node;
  }

  private static void put(ObjectNode node, String whose, TextLosses texts) {
    put(node, whose + "answer_loss", texts.answer());
    put(node, whose + "prompt_loss", texts.prompt());
    put(node, whose + "answer_loss_by_task", texts.answerByTask());
    put(node, whose + "prompt_loss_by_task", texts.promptByTask());
  }

  private static ObjectNode node(String event, long step, StepReport.Losses losses) {
    var node = Jsonl.JSON.createObjectNode().put("event", event).put("step", step);
    put(node, "loss", losses.total());
    put(node, "lm_loss", losses.languageModel());
    put(node, "gate_loss", losses.gate());
    put(node, "gate_accuracy", losses.gateAccuracy());
    put(node, "gate_accuracy_by_task", losses.gateAccuracyByTask());
    put(node, "dominant_accuracy", losses.dominantAccuracy());
    put(node, "dominant_accuracy_by_task", losses.dominantAccuracyByTask());
    return node.put("tokens", losses.tokens());
  }

  private static void put(ObjectNode node, String key, Map<String, Double> byTask) {
    if (!byTask.isEmpty()) {
      var tasks = node.putObject(key);
      byTask.forEach((task, value) -> put(tasks, task, value));
    }
  }

  private static void put(ObjectNode node, String key, double value) {
    if (Double.isFinite(value)) {
      node.put(key, value);
    }
  }

  private void append(ObjectNode node) {
    try {
      Files.writeString(file, node + "\n", StandardOpenOption.CREATE, StandardOpenOption.APPEND);
      failed = false;
    } catch (IOException e) {
      if (!failed) {
        LOG.warn("cannot write {}: {}; training goes on", file, AtomicFiles.reason(e));
      }
      failed = true;
    }
  }
}
