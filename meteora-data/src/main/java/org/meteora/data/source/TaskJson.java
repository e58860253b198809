package org.meteora.data.source;

import com.fasterxml.jackson.databind.node.NullNode;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashSet;
import java.util.List;
import org.meteora.UserException;
import org.meteora.io.Folders;

/**
 * BIG-bench's original {@code task.json}, turned into the records that were published from it: the
 * same examples, text, order and split, byte for byte, as BIG-bench 1.0.0 and the {@code bigbench}
 * script of the datasets library made them.
 *
 * <p>A folder's {@code task.json} holds the examples, or else each direct sub-folder with a {@code
 * task.json} is a sub-task. Examples that are equal as serialised JSON count once. An example
 * becomes {@code task_prefix + example_input_prefix + input + choices + example_output_prefix}, the
 * whole stripped. A fifth of the distinct examples, and no fewer than 16 by the task, are the
 * validation split.
 *
 * <p>Memory holds one example at a time: a first reading notes where each one lies in the file,
 * then they are read in their order.
 */
final class TaskJson {
  private static final String FILE = "task.json";

  /** Validation examples at least, shared out among the sub-tasks. */
  private static final int MINIMUM_VALIDATION = 16;

  private final Path folder;
  private List<TaskJsonExamples> files;

  /** The task in this folder; read when its records are asked for, once for both splits. */
  TaskJson(Path folder) {
    this.folder = folder;
  }

  /** Whether a folder holds a task.json, or sub-folders that do. */
  static boolean isPresent(Path folder) {
    return Files.isRegularFile(folder.resolve(FILE))
        || !subTasks(folder).isEmpty()
        || !deeper(folder).isEmpty();
  }

  Records train() {
    return each -> files().forEach(examples -> examples.forEach(true, each));
  }

  Records validation() {
    return each -> files().forEach(examples -> examples.forEach(false, each));
  }

  /**
   * Names of BIG-bench's scores for this task, the preferred one first; of a task with sub-tasks
   * and no scores of its own, those of the first that has some.
   */
  List<String> scores() {
    var own = folder.resolve(FILE);
    var all = new ArrayList<Path>(Files.isRegularFile(own) ? List.of(own) : List.of());
    all.addAll(subTasks(folder));
    for (var file : all) {
      var settings = TaskJsonExamples.scan(file, 0).settings();
      var names = new LinkedHashSet<String>();
      names.add(settings.getOrDefault("preferred_score", NullNode.instance).asText(""));
      settings.getOrDefault("metrics", NullNode.instance).forEach(name -> names.add(name.asText()));
      names.remove("");
      if (!names.isEmpty()) {
        return List.copyOf(names);
      }
    }
    return List.of();
  }

  /** Sub-tasks in the order of their whole paths by code point: {@code a-x} is before {@code a}. */
  private static List<Path> subTasks(Path folder) {
    return subFolders(folder).stream()
        .map(sub -> sub.resolve(FILE))
        .filter(Files::isRegularFile)
        .sorted(Comparator.comparing(Path::toString, TaskJsonExamples::byCodePoint))
        .toList();
  }

  /** Files two levels down, which are no sub-tasks. */
  private static List<Path> deeper(Path folder) {
    return subFolders(folder).stream().flatMap(sub -> subTasks(sub).stream()).toList();
  }

  static List<Path> subFolders(Path folder) {
    return Folders.entries(folder).stream().filter(Files::isDirectory).toList();
  }

  private List<TaskJsonExamples> files() {
    if (files == null) {
      var own = folder.resolve(FILE);
      var found = new ArrayList<TaskJsonExamples>();
      if (Files.isRegularFile(own)) {
        found.add(TaskJsonExamples.scan(own, MINIMUM_VALIDATION));
        found.removeIf(root -> root.distinct() == null);
      }
      if (found.isEmpty()) {
        var subTasks = subTasks(folder);
        for (var file : subTasks) {
          found.add(TaskJsonExamples.scan(file, MINIMUM_VALIDATION / subTasks.size()));
          requireExamples(found.getLast().distinct() != null, file);
        }
        requireExamples(!found.isEmpty(), own);
      }
      found.forEach(TaskJsonExamples::requireSplit);
      files = List.copyOf(found);
    }
    return files;
  }

  private void requireExamples(boolean some, Path file) {
    if (!some) {
      var tooDeep = deeper(folder).stream().findFirst();
      throw new UserException(
          file
              + ": no \"examples\""
              + tooDeep
                  .map(each -> "; those in " + each + " are two levels down, sub-tasks are one")
                  .orElse(""));
    }
  }
}
