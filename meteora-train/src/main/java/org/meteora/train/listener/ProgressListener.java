package org.meteora.train.listener;

import java.nio.file.Path;
import java.util.Locale;
import java.util.stream.Collectors;
import org.meteora.io.Progress;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** A progress bar, and a line for every evaluation and checkpoint, on stderr. */
public final class ProgressListener implements TrainingListener {
  private static final Logger LOG = LoggerFactory.getLogger(ProgressListener.class);

  private final String name;
  private Progress progress;

  public ProgressListener(String name) {
    this.name = name;
  }

  @Override
  public void onStart(long step, long steps) {
    progress = new Progress(name, steps, " steps", 1);
    progress.begin(step);
  }

  @Override
  public void onPart(Part part, long kept) {
    LOG.info(
        "the gates leave the answers' loss too far above the own adapters' (--train gates ends"
            + " here): from step {} on, with what step {} had come to, both are trained together:"
            + " {}",
        part.before() + 1,
        kept,
        part.describe());
  }

  @Override
  public void onStep(StepReport report) {
    var losses = report.losses();
    var gates =
        Double.isNaN(losses.gate())
            ? ""
            : text(
                ", gate %.4f, right %.1f%%, jointly %.1f%%",
                losses.gate(), 100 * losses.gateAccuracy(), 100 * losses.dominantAccuracy());
    progress.note(
        text(
            "loss %.4f%s, %.0f tokens/s, %.1f GiB",
            losses.languageModel(),
            gates,
            report.tokensPerSecond(),
            report.memoryBytes() / (double) (1L << 30)));
    progress.step(1);
  }

  @Override
  public void onEvaluation(long step, Evaluation evaluation) {
    var losses = evaluation.losses();
    var references = "";
    if (evaluation.oracle().isPresent()) {
      double own = evaluation.oracle().get().answer();
      double base = evaluation.base().orElseThrow().answer();
      references = text(" (own adapters %.4f, base %.4f)", own, base);
    }
    double prompt = losses.texts().prompt();
    var texts =
        text("answer loss %.4f%s, prompt loss %.4f", evaluation.answerLoss(), references, prompt);
    if (Double.isNaN(losses.gate())) {
      LOG.info("step {}: held out: {}", step, texts);
      return;
    }
    var byTask =
        losses.dominantAccuracyByTask().entrySet().stream()
            .map(e -> text("%s %.1f%%", e.getKey(), 100 * e.getValue()))
            .collect(Collectors.joining(", "));
    LOG.info(
        text(
            "step %d: held out: %s, gate loss %.4f, gates right %.1f%%, jointly %.1f%% (%s)",
            step,
            texts,
            losses.gate(),
            100 * losses.gateAccuracy(),
            100 * losses.dominantAccuracy(),
            byTask));
  }

  private static String text(String format, Object... values) {
    return String.format(Locale.ROOT, format, values);
  }

  @Override
  public void onCheckpoint(long step, Path folder) {
    LOG.info("step {}: wrote {}", step, folder);
  }

  @Override
  public void onEnd() {
    if (progress != null) {
      progress.close();
    }
  }
}
