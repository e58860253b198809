package org.meteora.train;

import ai.djl.Device;
import ai.djl.ndarray.NDArray;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.function.Consumer;
import org.meteora.UserException;
import org.meteora.io.AtomicFiles;
import org.meteora.safetensors.SafetensorsFile;
import org.meteora.safetensors.SafetensorsWriter;
import org.meteora.tensor.Ops;
import org.meteora.train.listener.Part;
import org.meteora.train.optim.FlatParameters;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The parameters of the evaluation with the lowest answer loss so far, in {@code best.safetensors}
 * of the run's folder; those of a second part, which trains more, in {@code
 * best-of-all.safetensors}.
 */
final class BestModel {
  private static final Logger LOG = LoggerFactory.getLogger(BestModel.class);

  private final Path file;
  private final FlatParameters parameters;
  private long step;
  private double loss = Double.POSITIVE_INFINITY;

  /**
   * @param part whose parameters they are: another part of a run has others
   */
  BestModel(Path folder, Part part, FlatParameters parameters) {
    file = folder.resolve(part.before() == 0 ? "best.safetensors" : "best-of-all.safetensors");
    this.parameters = parameters;
  }

  /** The step whose parameters they are; 0 when there is none. */
  long step() {
    return step;
  }

  /**
   * Takes up what an earlier part of the run left; forgets what lies after {@code from}, which will
   * be made again.
   *
   * @throws UserException when the file is damaged, before any work is done
   */
  void resume(long from) {
    if (!Files.exists(file)) {
      return;
    }
    try {
      try (var saved = SafetensorsFile.open(file)) {
        step = Long.parseLong(saved.metadata().getOrDefault("step", "0"));
        loss = Double.parseDouble(saved.metadata().getOrDefault("answer_loss", "Infinity"));
      }
      if (step > from || step < 1 || !Double.isFinite(loss)) {
        step = 0;
        loss = Double.POSITIVE_INFINITY;
        Files.delete(file);
      } else {
        read(saved -> {});
      }
    } catch (IOException | IllegalArgumentException e) {
      throw damaged(AtomicFiles.reason(e), e);
    }
  }

  private void read(Consumer<NDArray> values) {
    try (var saved = SafetensorsFile.open(file);
        var scope = parameters.manager().newSubManager(Device.cpu())) {
      values.accept(StateFile.tensor(saved, scope, "parameters", parameters.size(), false));
    } catch (StateFile.Damaged e) {
      throw damaged(e.getMessage(), e);
    }
  }

  private UserException damaged(String why, Exception cause) {
    return new UserException(
        "cannot use %s, the best model so far (%s): remove it to go on without it, or"
            + " resume from an earlier checkpoint",
        file, why, cause);
  }

  boolean isBetter(double answerLoss) {
    return answerLoss < loss;
  }

  /** Keeps a model, which is all its master values. */
  void keep(long now, double answerLoss, NDArray values) {
    try {
      SafetensorsWriter.write(
          file,
          Map.of("parameters", values),
          Map.of("step", String.valueOf(now), "answer_loss", String.valueOf(answerLoss)));
      step = now;
      loss = answerLoss;
    } catch (UserException e) {
      LOG.error("the best model so far could not be kept: {}; training goes on", e.getMessage());
    }
  }

  void restore() {
    read(values -> Ops.copy(parameters.values(), values));
  }
}
