package org.meteora.data.composite;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.meteora.UserException;
import org.meteora.io.FolderNames;
import org.meteora.io.Jsonl;

/**
 * Several tasks asked in one prompt (paper, section 4.2).
 *
 * @param name {@code composite_3}, …
 * @param tasks in the order in which they are asked
 */
public record CompositeTask(String name, List<String> tasks) {
  /**
   * @throws UserException when a task occurs twice, or a name is not a folder's
   */
  public CompositeTask {
    FolderNames.require("the task", name);
    tasks.forEach(task -> FolderNames.require("the task", task));
    if (new HashSet<>(tasks).size() < tasks.size()) {
      throw new UserException(
          "a composite task asks each task once, not " + String.join(",", tasks));
    }
  }

  /** Between the answers of a composite response. */
  public static final String SEPARATOR = "@@@@\n";

  private static final Map<Integer, List<String>> PUBLISHED =
      Map.of(
          3, List.of("logical_deduction", "question_selection", "strategyqa"),
          5,
              List.of(
                  "logical_deduction",
                  "question_selection",
                  "abstract_narrative_understanding",
                  "goal_step_wikihow",
                  "strategyqa"),
          10,
              List.of(
                  "logical_deduction",
                  "question_selection",
                  "abstract_narrative_understanding",
                  "goal_step_wikihow",
                  "winowhy",
                  "strategyqa",
                  "disfl_qa",
                  "news_commentary_de",
                  "alpaca",
                  "linguistics_puzzles"));

  /** The paper's composite task of n tasks: 3, 5 or 10. */
  public static Optional<CompositeTask> published(int n) {
    return Optional.ofNullable(PUBLISHED.get(n))
        .map(tasks -> new CompositeTask("composite_" + n, tasks));
  }

  /** The paper's composite task of this name. */
  public static Optional<CompositeTask> find(String name) {
    return PUBLISHED.keySet().stream()
        .filter(n -> name.equals("composite_" + n))
        .findFirst()
        .flatMap(CompositeTask::published);
  }

  /**
   * The composite task of this name: as its folder of data says ({@code composite.json}, written by
   * {@code create-composite}), else the paper's.
   */
  public static Optional<CompositeTask> find(String name, Path targetDir) {
    var file = targetDir.resolve(FolderNames.require("the task", name)).resolve("composite.json");
    if (!Files.isRegularFile(file)) {
      return find(name);
    }
    var tasks = Jsonl.texts(Jsonl.readFile(file), "tasks", file.toString());
    if (tasks.isEmpty()) {
      throw new UserException(file + ": no \"tasks\"");
    }
    return Optional.of(new CompositeTask(name, tasks));
  }

  /**
   * T of the routing for n tasks in one prompt: 15 for 3, 20 for 5, 30 for 10; between them by the
   * next larger.
   */
  public static double routingTemperature(int n) {
    if (n <= 1) {
      return 1;
    }
    return n <= 3 ? 15 : n <= 5 ? 20 : 30;
  }
}
