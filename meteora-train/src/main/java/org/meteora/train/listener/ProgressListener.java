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
            : String.format(
                Locale.ROOT,
                ", gate %.4f, right %.1f%%, jointly %.1f%%",
                losses.gate(),
                100 * losses.gateAccuracy(),
                100 * losses.dominantAccuracy());
    progress.note(
        String.format(
            Locale.ROOT,
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
    var texts =
        String.format(
            Locale.ROOT,
            "answer loss %.4f%s, prompt loss %.4f",
            evaluation.answerLoss(),
            evaluation
                .oracle()
                .map(
                    oracle ->
                        String.format(
                            Locale.ROOT,
                            " (own adapters %.4f, base %.4f)",
                            oracle.answer(),
                            evaluation.base().orElseThrow().answer()))
                .orElse(""),
            losses.texts().prompt());
    var byTask =
        losses.dominantAccuracyByTask().entrySet().stream()
            .map(e -> String.format(Locale.ROOT, "%s %.1f%%", e.getKey(), 100 * e.getValue()))
            .collect(Collectors.joining(", "));
    if (Double.isNaN(losses.gate())) {
      LOG.info("step {}: held out: {}", step, texts);
    } else {
      LOG.info(
          String.format(
              Locale.ROOT,
              "step %d: held out: %s, gate loss %.4f, gates right %.1f%%, jointly %.1f%% (%s)",
              step,
              texts,
              losses.gate(),
              100 * losses.gateAccuracy(),
              100 * losses.dominantAccuracy(),
              byTask));
    }
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
