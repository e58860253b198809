package org.meteora.data.tasks;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.OutputStream;
import java.nio.file.Path;
import java.security.DigestOutputStream;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashSet;
import java.util.HexFormat;
import java.util.List;
import java.util.Random;
import java.util.Set;
import org.meteora.UserException;
import org.meteora.data.Sample;
import org.meteora.data.source.Records;
import org.meteora.data.source.SourceLocator;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Digests;
import org.meteora.io.Jsonl;

/**
 * Turns a task's source into {@code <target>/<task>/{train,test}.jsonl}. The same source and seed
 * always give the same bytes.
 */
public final class DatasetMaker {
  static final int MOST_TRAIN = 100_000;
  static final int MOST_TEST = 50_000;

  private final Path targetDir;
  private final long seed;

  public DatasetMaker(Path targetDir, long seed) {
    this.targetDir = targetDir;
    this.seed = seed;
  }

  /**
   * What was written.
   *
   * @param sha256 of train.jsonl followed by test.jsonl
   */
  public record Written(int train, int test, String sha256) {}

  /**
   * Writes both files, or neither when a record of either is wrong.
   *
   * @throws UserException when a record lacks what the task needs (naming file and line), or a file
   *     cannot be written
   */
  public Written make(Task task, SourceLocator.Source source) {
    try {
      return write(task, source);
    } catch (OutOfMemoryError e) {
      throw new UserException(
          "out of memory in the source of " + task.name() + ": it needs a larger heap (java -Xmx)",
          e);
    }
  }

  private Written write(Task task, SourceLocator.Source source) {
    var folder = targetDir.resolve(task.name());
    var digest = Digests.sha256();
    var train = source.train();
    Records test;
    if (source.test().isPresent()) {
      test = source.test().get();
    } else {
      // no test split: a fifth of the records, drawn with the seed
      int[] total = new int[1];
      source.train().forEach((node, where) -> total[0]++);
      var order = new ArrayList<Integer>();
      for (int i = 0; i < total[0]; i++) {
        order.add(i);
      }
      Collections.shuffle(order, new Random(seed));
      Set<Integer> chosen = new HashSet<>(order.subList(0, total[0] / 5));
      train = filtered(source.train(), chosen, false);
      test = filtered(source.train(), chosen, true);
    }
    var records = train;
    int[] counts = new int[2];
    // train.jsonl takes its place after test.jsonl has: a broken record of either leaves both as
    // they were
    AtomicFiles.writeStream(
        folder.resolve("train.jsonl"),
        out -> {
          counts[0] = write(out, task, "train", records, MOST_TRAIN, digest);
          AtomicFiles.writeStream(
              folder.resolve("test.jsonl"),
              testOut -> counts[1] = write(testOut, task, "test", test, MOST_TEST, digest));
        });
    return new Written(counts[0], counts[1], HexFormat.of().formatHex(digest.digest()));
  }

  private static Records filtered(Records records, Set<Integer> chosen, boolean wanted) {
    return each -> {
      int[] index = new int[1];
      records.forEach(
          (node, where) -> {
            if (chosen.contains(index[0]++) == wanted) {
              each.accept(node, where);
            }
          });
    };
  }

  private static int write(
      OutputStream out, Task task, String split, Records records, int most, MessageDigest digest) {
    int[] count = new int[1];
    var hashed = new DigestOutputStream(out, digest);
    records.forEach(
        (node, where) -> {
          if (count[0] == most) {
            return;
          }
          count[0]++;
          try {
            hashed.write(sample(task, node, where).line());
          } catch (java.io.IOException e) {
            // not as it is: the reader of the source would take it for its own
            throw new UserException(
                "cannot write " + task.name() + "/" + split + ".jsonl: " + AtomicFiles.reason(e),
                e);
          }
        });
    if (count[0] == 0) {
      throw new UserException("the source of " + task.name() + " has no record for " + split);
    }
    return count[0];
  }

  /** One record as prompt and answer. */
  static Sample sample(Task task, JsonNode node, String where) {
    return switch (task.source()) {
      case BIGBENCH -> bigbench(task, node, where);
      case ALPACA ->
          // the newline is there without an input too, as in the published data
          prompt(
              Jsonl.text(node, "instruction", where) + "\n" + node.path("input").asText(""),
              Jsonl.text(node, "output", where));
      case CNN_DAILYMAIL ->
          prompt(
              "Generate a summarization of the news article.\n"
                  + Jsonl.text(node, "article", where),
              Jsonl.text(node, "highlights", where));
      case GSM8K -> prompt(Jsonl.text(node, "question", where), Jsonl.text(node, "answer", where));
      case NEWS_COMMENTARY_DE ->
          translation("Den folgenden Text ins Englische übersetzen.\n", "de", node, where);
      case NEWS_COMMENTARY_ES ->
          translation("Traducir las siguientes frases al inglés.\n", "es", node, where);
      case NEWS_COMMENTARY_IT ->
          translation("Tradurre le seguenti frasi in inglese.\n", "it", node, where);
    };
  }

  private static Sample translation(
      String instruction, String language, JsonNode node, String where) {
    var pair = node.path("translation");
    return prompt(instruction + Jsonl.text(pair, language, where), Jsonl.text(pair, "en", where));
  }

  private static Sample bigbench(Task task, JsonNode node, String where) {
    var targets = node.path("targets");
    if (!targets.isArray() || targets.isEmpty() || !targets.get(0).isTextual()) {
      throw new UserException(where + ": \"targets\" must be a list with at least one text");
    }
    var inputs = Jsonl.text(node, "inputs", where);
    var choices = new StringBuilder("\n");
    if (task.form() != Task.PromptForm.INPUTS) {
      var list = node.path("multiple_choice_targets");
      if (!list.isArray()) {
        throw new UserException(where + ": \"multiple_choice_targets\" must be a list");
      }
      for (var choice : list) {
        choices.append("choice: ").append(choice.asText()).append('\n');
      }
    }
    var text =
        switch (task.form()) {
          case INPUTS, OWN -> inputs;
          case CHOICES -> inputs + choices;
          case QUESTION_AND_CHOICES -> inputs + " Which choice is correct?" + choices;
        };
    return prompt(text, targets.get(0).asText());
  }

  private static Sample prompt(String text, String response) {
    return new Sample("[INST] " + text + " [/INST]\n", response);
  }

  /** Names of tasks as the user gives them: {@code all}, or one. */
  public static List<Task> chosen(String name) {
    return name.equals("all") ? List.copyOf(Tasks.all()) : List.of(Tasks.get(name));
  }
}
