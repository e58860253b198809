package org.meteora.train;

import ai.djl.Device;
import ai.djl.ndarray.NDArray;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import org.meteora.UserException;
import org.meteora.io.AtomicFiles;
import org.meteora.safetensors.SafetensorsFile;
import org.meteora.safetensors.SafetensorsWriter;
import org.meteora.tensor.Ops;
import org.meteora.train.optim.FlatParameters;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The parameters of the evaluation with the lowest answer loss so far, in {@code best.safetensors}
 * of the run's folder.
 */
final class BestModel {
  private static final Logger LOG = LoggerFactory.getLogger(BestModel.class);

  private final Path file;
  private long step;
  private double loss = Double.POSITIVE_INFINITY;

  BestModel(Path folder) {
    file = folder.resolve("best.safetensors");
  }

  /** The step it is from; 0 when there is none. */
  long step() {
    return step;
  }

  /**
   * Takes up what an earlier part of the run left; forgets what lies after {@code from}, which will
   * be made again.
   */
  void resume(long from) {
    try {
      if (!Files.exists(file)) {
        return;
      }
      try (var saved = SafetensorsFile.open(file)) {
        step = Long.parseLong(saved.metadata().getOrDefault("step", "0"));
        loss = Double.parseDouble(saved.metadata().getOrDefault("answer_loss", "Infinity"));
      }
      if (step > from || step < 1 || Double.isNaN(loss)) {
        step = 0;
        loss = Double.POSITIVE_INFINITY;
        Files.delete(file);
      }
    } catch (IOException | IllegalArgumentException e) {
      throw new UserException("cannot use " + file + ": " + AtomicFiles.reason(e), e);
    }
  }

  /** Whether no evaluation before was as good. */
  boolean isBetter(double answerLoss) {
    return answerLoss < loss;
  }

  /**
   * Keeps a model.
   *
   * @param parameters all master values
   */
  void keep(long now, double answerLoss, NDArray parameters) {
    try {
      SafetensorsWriter.write(
          file,
          Map.of("parameters", parameters),
          Map.of("step", String.valueOf(now), "answer_loss", String.valueOf(answerLoss)));
      step = now;
      loss = answerLoss;
    } catch (UserException e) {
      LOG.error("the best model so far could not be kept: {}; training goes on", e.getMessage());
    }
  }

  /** Fills the master values from the file. */
  void restore(FlatParameters parameters) {
    try (var saved = SafetensorsFile.open(file);
        var scope = parameters.manager().newSubManager(Device.cpu())) {
      Ops.copy(parameters.values(), saved.read(scope, "parameters"));
    }
  }
}
