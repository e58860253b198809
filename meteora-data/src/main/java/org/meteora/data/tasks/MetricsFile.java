package org.meteora.data.tasks;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.meteora.UserException;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Jsonl;

/**
 * {@code metrics.json} in a folder of data, {@code {"metrics": ["exact_accuracy", …]}}: how the
 * answers to a task that is not one of the 28 are scored.
 */
public final class MetricsFile {
  private static final String NAME = "metrics.json";

  private MetricsFile() {}

  /** Writes the keys of metrics beside a task's data. */
  public static void write(Path folder, List<String> metrics) {
    AtomicFiles.writeString(folder.resolve(NAME), Jsonl.pretty(Map.of("metrics", metrics)));
  }

  /**
   * The keys of metrics that a folder of data names; empty without the file.
   *
   * @throws UserException when the file names none
   */
  public static Optional<List<String>> read(Path folder) {
    var file = folder.resolve(NAME);
    if (!Files.isRegularFile(file)) {
      return Optional.empty();
    }
    var metrics = Jsonl.texts(Jsonl.readFile(file), "metrics", file.toString());
    if (metrics.isEmpty()) {
      throw new UserException(file + ": \"metrics\" must be a list of metrics, at least one");
    }
    return Optional.of(metrics);
  }
}
