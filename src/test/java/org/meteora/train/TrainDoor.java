package org.meteora.train;

import java.nio.file.Path;
import java.util.List;
import java.util.Optional;
import org.meteora.train.listener.Part;
import org.meteora.train.optim.FlatParameters;

/** Lets the fuzzing of a run's own files in. */
public final class TrainDoor {
  private TrainDoor() {}

  /** The best model so far, as a run that goes on takes it up and ends with it. */
  public static void best(Path folder, FlatParameters parameters) {
    var best = new BestModel(folder, new Part(0, 5, 1e-3, 1e-3, 0), parameters);
    best.resume(5);
    if (best.step() > 0) {
      best.restore();
    }
  }

  /** What an adapter's {@code training.json} says of how it was trained. */
  public static void said(Path adapter) {
    for (var setting : List.of("append_eos", "response_only")) {
      MeteoraTraining.settingOfAdapters(List.of(adapter), setting, Optional.empty());
    }
  }
}
