package org.meteora.data.source;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import java.util.SplittableRandom;
import org.meteora.UserException;
import org.meteora.io.Jsonl;

/**
 * BIG-bench's original {@code task.json}: examples with {@code input} and {@code target} or {@code
 * target_scores}, and how to write them out. Sub-tasks are sub-folders with a {@code task.json} of
 * their own.
 *
 * <p>An example becomes {@code task_prefix + input_prefix + input + choices + output_prefix}, the
 * choices shuffled with the seed, each after {@code choice_prefix} (unless {@code
 * append_choices_to_input} is false): the text that the task's published JSONL form holds under
 * {@code inputs}. The split is 80 % train, 20 % validation of the examples in an order shuffled
 * with the seed.
 */
final class TaskJson {
  private TaskJson() {}

  /** Whether a folder holds a task.json, or sub-folders that do. */
  static boolean isPresent(Path folder) {
    return !files(folder).isEmpty();
  }

  private static List<Path> files(Path folder) {
    var own = folder.resolve("task.json");
    var found = new ArrayList<Path>();
    if (Files.isRegularFile(own)) {
      found.add(own);
    }
    if (Files.isDirectory(folder)) {
      try (var entries = Files.list(folder)) {
        entries
            .filter(Files::isDirectory)
            .map(sub -> sub.resolve("task.json"))
            .filter(Files::isRegularFile)
            .sorted()
            .forEach(found::add);
      } catch (IOException e) {
        throw new UserException("cannot read the folder " + folder, e);
      }
    }
    return found;
  }

  static Records records(Path folder, boolean train, long seed) {
    return each -> {
      for (var file : files(folder)) {
        var root = Jsonl.readFile(file);
        var examples = new ArrayList<JsonNode>();
        root.path("examples").forEach(examples::add);
        if (examples.isEmpty() && files(folder).size() > 1) {
          continue; // a task whose examples are all in its sub-tasks
        }
        if (examples.isEmpty()) {
          throw new UserException(file + ": no \"examples\"");
        }
        var order = new ArrayList<Integer>();
        for (int i = 0; i < examples.size(); i++) {
          order.add(i);
        }
        Collections.shuffle(order, new Random(seed));
        int validation = Math.max(1, examples.size() / 5);
        var chosen =
            new ArrayList<>(
                train ? order.subList(validation, order.size()) : order.subList(0, validation));
        Collections.sort(chosen);
        for (int i : chosen) {
          each.accept(
              record(root, examples.get(i), i, seed, file + ": example " + i),
              file + ": example " + i);
        }
      }
    };
  }

  private static ObjectNode record(
      JsonNode task, JsonNode example, int index, long seed, String where) {
    var input = Jsonl.text(example, "input", where);
    var choices = new ArrayList<String>();
    var targets = new ArrayList<String>();
    var node = Jsonl.JSON.createObjectNode();
    var scores = example.path("target_scores");
    var scoreList = Jsonl.JSON.createArrayNode();
    double best = Double.NEGATIVE_INFINITY;
    for (var entry : scores.properties()) {
      choices.add(entry.getKey());
      scoreList.add(entry.getValue());
      best = Math.max(best, entry.getValue().asDouble());
    }
    for (var entry : scores.properties()) {
      if (entry.getValue().asDouble() == best) {
        targets.add(entry.getKey());
      }
    }
    var target = example.path("target");
    if (target.isTextual()) {
      targets.addFirst(target.asText());
    } else if (target.isArray()) {
      for (int i = target.size() - 1; i >= 0; i--) {
        targets.addFirst(target.get(i).asText());
      }
    }
    if (targets.isEmpty()) {
      throw new UserException(where + ": neither \"target\" nor \"target_scores\"");
    }
    var text = new StringBuilder(task.path("task_prefix").asText(""));
    text.append(task.path("example_input_prefix").asText("\nQ: ")).append(input);
    if (!choices.isEmpty() && task.path("append_choices_to_input").asBoolean(true)) {
      // the file often has the right one first: in an order of the example's own, as BIG-bench does
      var shown = new ArrayList<>(choices);
      Collections.sort(shown);
      Collections.shuffle(shown, new SplittableRandom(31 * seed + index));
      for (var choice : shown) {
        text.append(task.path("choice_prefix").asText("\n  choice: ")).append(choice);
      }
    }
    text.append(task.path("example_output_prefix").asText("\nA: "));
    node.put("inputs", text.toString());
    var targetList = node.putArray("targets");
    targets.stream().distinct().forEach(targetList::add);
    var choiceList = node.putArray("multiple_choice_targets");
    choices.forEach(choiceList::add);
    node.set("multiple_choice_scores", scoreList);
    node.put("idx", index);
    return node;
  }
}
