package org.meteora.eval.compare;

import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.meteora.UserException;
import org.meteora.eval.Answer;
import org.meteora.eval.EvalTask;
import org.meteora.eval.report.SavedAnswers;
import org.meteora.io.Jsonl;

/**
 * A saved evaluation.
 *
 * @param file its JSON
 * @param task what was evaluated
 * @param answers cleaned anew, in the order of the data
 */
record SavedRun(Path file, JsonNode json, EvalTask task, List<Answer> answers) {
  /**
   * @throws UserException when it is no saved evaluation, or its answers are missing or broken
   */
  static SavedRun read(Path file) {
    var json = Jsonl.readFile(file);
    if (!json.path("task").isTextual() || !json.path("metrics").isObject()) {
      throw new UserException(file + ": not a saved evaluation (meteora eval --save writes them)");
    }
    var answers = SavedAnswers.read(file);
    var name = json.path("task").asText();
    var task =
        SavedAnswers.task(file, name).orElseGet(() -> EvalTask.saved(name, List.of(), Map.of()));
    task.requireParts(answers.stream().map(Answer::truth).toList());
    return new SavedRun(file, json, task, answers);
  }

  /** {@code meteora}, {@code base}, {@code own adapter} or an adapter's name. */
  String model() {
    var model = json.path("model").path("model").asText("model");
    return model.equals(task.name()) ? "own adapter" : model;
  }
}
