package org.meteora.eval.report;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.JsonNode;
import java.io.BufferedInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Optional;
import org.meteora.UserException;
import org.meteora.eval.Answer;
import org.meteora.eval.EvalTask;
import org.meteora.eval.clean.AnswerCleaner;
import org.meteora.io.AtomicFiles;
import org.meteora.io.FolderNames;
import org.meteora.io.Jsonl;

/** Answers as JSONL, one a line, so that scores can be recomputed without generating again. */
public final class SavedAnswers {
  private static final String ANSWERS = ".answers.jsonl";
  private static final String PARTIAL = ".partial";

  /** Ends of the names of an evaluation's files while it runs. */
  static final String PARTIAL_ANSWERS = PARTIAL + ANSWERS;

  static final String PARTIAL_SETTINGS = PARTIAL + ".settings.json";

  private SavedAnswers() {}

  /** Writes all answers, in order. */
  public static void write(Path file, List<Answer> answers) {
    AtomicFiles.writeStream(
        file,
        out -> {
          for (var answer : answers) {
            out.write(line(answer));
          }
        });
  }

  /** An answer as a line of the file, with the line feed. */
  static byte[] line(Answer answer) {
    return (Jsonl.JSON.valueToTree(answer) + "\n").getBytes(StandardCharsets.UTF_8);
  }

  /**
   * Answers of an evaluation that did not end.
   *
   * @param answers in the order they came, each sample's once
   * @param bytes of the file that hold them: a line that was cut off comes after
   */
  record Partial(List<Answer> answers, long bytes) {}

  /** Reads what there is of such a file: up to the first line that is not whole. */
  static Partial readPartial(Path file) {
    var answers = new LinkedHashMap<Integer, Answer>();
    long bytes = 0;
    if (!Files.exists(file)) {
      return new Partial(List.of(), 0);
    }
    try (var in = new BufferedInputStream(Files.newInputStream(file))) {
      var line = new ByteArrayOutputStream();
      for (int b; (b = in.read()) >= 0; ) {
        line.write(b);
        if (b == '\n') {
          var json = Jsonl.JSON.readTree(line.toByteArray());
          var answer = answer(json, file.toString(), answers.size());
          answers.put(answer.index(), answer);
          bytes += line.size();
          line.reset();
        }
      }
    } catch (JsonProcessingException | UserException e) {
      // cut off by a crash of the machine: what is before it counts
    } catch (IOException e) {
      throw new UserException("cannot read " + file + ": " + AtomicFiles.reason(e), e);
    }
    return new Partial(List.copyOf(answers.values()), bytes);
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
    if (file.toString().endsWith(PARTIAL_ANSWERS) && Files.exists(file)) {
      answers.addAll(readPartial(file).answers());
    } else {
      Jsonl.forEach(file, (node, line) -> add(answers, node, file + ":" + line));
    }
    if (answers.isEmpty()) {
      throw new UserException(file + ": there are no answers in this file");
    }
    return answers;
  }

  private static void add(List<Answer> answers, JsonNode node, String where) {
    var answer = answer(node, where, answers.size());
    if (!answers.isEmpty() && !answers.getFirst().task().equals(answer.task())) {
      throw new UserException(
          "%s: an answer to %s among answers to %s",
          where, answer.task(), answers.getFirst().task());
    }
    answers.add(answer);
  }

  /**
   * The task that was evaluated, as the result's JSON says; empty when there is no such JSON.
   *
   * @param file as for {@link #read}
   */
  public static Optional<EvalTask> task(Path file, String name) {
    return settings(file)
        .filter(settings -> settings.path("tasks").isArray())
        .map(
            settings -> {
              var metrics = new LinkedHashMap<String, List<String>>();
              var own = settings.path("metrics").properties();
              own.forEach(task -> metrics.put(task.getKey(), texts(task.getValue())));
              return EvalTask.saved(name, texts(settings.path("tasks")), metrics);
            });
  }

  private static Optional<JsonNode> settings(Path file) {
    var name = file.getFileName().toString();
    var json = file;
    if (name.endsWith(ANSWERS)) {
      var stem = name.substring(0, name.length() - ANSWERS.length());
      json = file.resolveSibling(stem + (stem.endsWith(PARTIAL) ? ".settings.json" : ".json"));
    }
    return json.toString().endsWith(".json") && Files.isRegularFile(json)
        ? Optional.of(Jsonl.readFile(json).path("settings"))
        : Optional.empty();
  }

  private static List<String> texts(JsonNode array) {
    return array.valueStream().map(JsonNode::asText).toList();
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
