package org.meteora.eval.report;

import com.fasterxml.jackson.databind.JsonNode;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.meteora.UserException;
import org.meteora.eval.Answer;
import org.meteora.eval.clean.AnswerCleaner;
import org.meteora.io.AtomicFiles;
import org.meteora.io.FolderNames;
import org.meteora.io.Jsonl;

/** Answers as JSONL, one a line, so that scores can be recomputed without generating again. */
public final class SavedAnswers {
  private static final String ANSWERS = ".answers.jsonl";

  private SavedAnswers() {}

  /** Writes all answers, in order. */
  public static void write(Path file, List<Answer> answers) {
    AtomicFiles.writeStream(
        file,
        out -> {
          for (var answer : answers) {
            out.write(Jsonl.JSON.writeValueAsString(answer).getBytes(StandardCharsets.UTF_8));
            out.write('\n');
          }
        });
  }

  /**
   * Reads answers and cleans their decoded texts anew.
   *
   * @param file what {@link #write} wrote, or the result's JSON beside it; needed in each line:
   *     {@code task}, {@code prompt}, {@code truth}, {@code decoded}
   * @throws UserException when the file is missing, broken or empty, or mixes tasks
   */
  public static List<Answer> read(Path file) {
    if (file.toString().endsWith(".json")) {
      var name = Jsonl.readFile(file).path("answers").asText("");
      if (name.isEmpty()) {
        throw new UserException(
            file + ": names no answers file; give the .answers.jsonl of a saved evaluation");
      }
      return read(file.resolveSibling(FolderNames.require(file + ": the answers file", name)));
    }
    var answers = new ArrayList<Answer>();
    Jsonl.forEach(
        file,
        (node, line) -> {
          var answer = answer(node, file + ":" + line, answers.size());
          if (!answers.isEmpty() && !answers.getFirst().task().equals(answer.task())) {
            throw new UserException(
                file
                    + ":"
                    + line
                    + ": an answer to "
                    + answer.task()
                    + " among answers to "
                    + answers.getFirst().task());
          }
          answers.add(answer);
        });
    if (answers.isEmpty()) {
      throw new UserException(file + ": there are no answers in this file");
    }
    return answers;
  }

  /**
   * The tasks of the composite task that was evaluated, by the result's JSON; an empty list for a
   * single task, nothing when there is no such JSON.
   *
   * @param file as for {@link #read}
   */
  public static Optional<List<String>> tasks(Path file) {
    return settings(file)
        .map(settings -> settings.path("tasks"))
        .filter(JsonNode::isArray)
        .map(SavedAnswers::texts);
  }

  /**
   * Keys of the metrics of tasks beyond the 28, by task, as the result's JSON says.
   *
   * @param file as for {@link #read}
   */
  public static Map<String, List<String>> metrics(Path file) {
    var result = new LinkedHashMap<String, List<String>>();
    settings(file)
        .ifPresent(
            settings ->
                settings
                    .path("metrics")
                    .properties()
                    .forEach(task -> result.put(task.getKey(), texts(task.getValue()))));
    return result;
  }

  private static Optional<JsonNode> settings(Path file) {
    var name = file.getFileName().toString();
    var json =
        name.endsWith(ANSWERS)
            ? file.resolveSibling(name.substring(0, name.length() - ANSWERS.length()) + ".json")
            : file;
    return json.toString().endsWith(".json") && Files.isRegularFile(json)
        ? Optional.of(Jsonl.readFile(json).path("settings"))
        : Optional.empty();
  }

  private static List<String> texts(JsonNode array) {
    var result = new ArrayList<String>();
    array.forEach(each -> result.add(each.asText()));
    return result;
  }

  private static Answer answer(JsonNode node, String where, int position) {
    var task = Jsonl.text(node, "task", where);
    var prompt = Jsonl.text(node, "prompt", where);
    var truth = Jsonl.text(node, "truth", where);
    boolean skipped = node.path("skipped").asBoolean(false);
    var decoded = skipped ? "" : Jsonl.text(node, "decoded", where);
    var cleaned =
        skipped ? new AnswerCleaner.Cleaned("", false) : AnswerCleaner.clean(task, decoded, prompt);
    return new Answer(
        task,
        node.path("index").asInt(position),
        prompt,
        truth,
        decoded,
        cleaned.text(),
        node.path("prompt_tokens").asInt(0),
        node.path("new_tokens").asInt(0),
        skipped,
        cleaned.promptLost());
  }
}
