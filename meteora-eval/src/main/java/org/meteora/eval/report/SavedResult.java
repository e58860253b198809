package org.meteora.eval.report;

import com.fasterxml.jackson.core.JsonProcessingException;
import java.nio.file.Path;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Supplier;
import org.meteora.eval.Evaluator;
import org.meteora.eval.Scores;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Jsonl;

/**
 * The files of a saved evaluation: {@code <folder>/{meteora,peft,base}/<task>.json} and beside it
 * {@code <task>.answers.jsonl}. The format is described in docs/results.md.
 */
public final class SavedResult {
  /** Raised when a field changes its meaning. */
  public static final int FORMAT = 1;

  private final Path folder;
  private final String task;

  /**
   * Finds out, before hours of work, whether the files can be written.
   *
   * @param resultFolder {@code eval_result_save_dir}
   * @param model {@code meteora}, {@code base} or an adapter's name
   * @throws org.meteora.UserException when the folder cannot be made or written to
   */
  public SavedResult(Path resultFolder, String model, String task) {
    this.folder = resultFolder.resolve(kind(model));
    this.task = task;
    AtomicFiles.requireWritableFolder(folder);
  }

  private static String kind(String model) {
    return model.equals("meteora") || model.equals("base") ? model : "peft";
  }

  /** The result's JSON file. */
  public Path file() {
    return folder.resolve(task + ".json");
  }

  /** The answers' file. */
  public Path answersFile() {
    return folder.resolve(task + ".answers.jsonl");
  }

  /**
   * Writes both files, the answers first.
   *
   * @param arguments the command line
   * @param settings of the evaluation and its generation
   * @param model settings and hashes of the model; asked for once the answers are written
   */
  public void write(
      List<String> arguments,
      Map<String, Object> settings,
      Supplier<Map<String, Object>> model,
      Evaluator.Run run,
      Scores scores) {
    SavedAnswers.write(answersFile(), run.answers());
    var json = new LinkedHashMap<String, Object>();
    json.put("format", FORMAT);
    json.put("task", task);
    json.put("created", Instant.now().truncatedTo(ChronoUnit.SECONDS).toString());
    json.put("arguments", arguments);
    json.put("settings", settings);
    json.put("model", model.get());
    json.put("samples", scores.samples());
    json.put("skipped", scores.skipped());
    json.put("metrics", scores.metrics());
    json.put("intervals", scores.intervals());
    json.put("warnings", scores.warnings());
    json.put("throughput", run.throughput());
    json.put("answers", answersFile().getFileName().toString());
    try {
      AtomicFiles.writeString(
          file(), Jsonl.JSON.writerWithDefaultPrettyPrinter().writeValueAsString(json) + "\n");
    } catch (JsonProcessingException e) {
      throw new IllegalStateException(e);
    }
  }
}
