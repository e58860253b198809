package org.meteora.eval.compare;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.meteora.UserException;
import org.meteora.io.AtomicFiles;

/**
 * Sorts saved evaluations into what is compared: one column for each system, one result a task in
 * it. Results of one folder and one model are one system, and so are the adapters that were each
 * evaluated on their own task.
 */
final class Columns {
  private static final String ANSWERS = ".answers.jsonl";

  private Columns() {}

  /**
   * One system.
   *
   * @param label what its column is called
   * @param runs by task
   */
  record Column(String label, Map<String, SavedRun> runs) {}

  /**
   * @param label the user's; empty for one that is made up here
   * @param place what tells it from others of the same model
   */
  private record Key(String label, String model, String place) {}

  /**
   * Reads what the arguments name.
   *
   * @param arguments results ({@code .json}), their answers' files, or folders of results; each may
   *     be preceded by {@code LABEL=}
   * @throws UserException when one is missing, broken or given twice, or a label has two results of
   *     one task
   */
  static List<Column> of(List<String> arguments) {
    var columns = new LinkedHashMap<Key, Map<String, SavedRun>>();
    var seen = new TreeMap<Path, String>();
    for (var argument : arguments) {
      var path = Path.of(argument);
      var label = "";
      int equals = argument.indexOf('=');
      if (equals > 0 && argument.lastIndexOf('/', equals) < 0 && !Files.exists(path)) {
        label = argument.substring(0, equals);
        path = Path.of(argument.substring(equals + 1));
      }
      for (var file : files(path)) {
        if (seen.put(file.toAbsolutePath().normalize(), argument) != null) {
          throw new UserException(file + " is given twice");
        }
        add(columns, label, SavedRun.read(file));
      }
    }
    return label(columns);
  }

  private static List<Path> files(Path path) {
    if (path.toString().endsWith(ANSWERS)) {
      return List.of(result(path));
    }
    if (!Files.isDirectory(path)) {
      if (!Files.isRegularFile(path)) {
        throw new UserException(
            "no saved result "
                + path
                + ": give a <task>.json that \"meteora eval --save\" wrote, or a folder of them");
      }
      return List.of(path);
    }
    try (var tree = Files.walk(path)) {
      var found =
          tree.filter(file -> file.toString().endsWith(ANSWERS))
              .map(Columns::result)
              .filter(Files::exists)
              .sorted()
              .toList();
      if (found.isEmpty()) {
        throw new UserException(
            "no saved results in " + path + ": \"meteora eval --save\" writes them");
      }
      return found;
    } catch (IOException e) {
      throw new UserException("cannot read the folder " + path + ": " + AtomicFiles.reason(e), e);
    }
  }

  /** Columns and their values; those without one are left out. */
  static String listed(List<Column> columns, List<?> values) {
    return IntStream.range(0, columns.size())
        .filter(c -> values.get(c) != null)
        .mapToObj(c -> columns.get(c).label() + " " + values.get(c))
        .collect(Collectors.joining(", "));
  }

  /** The JSON beside a file of answers. */
  private static Path result(Path answers) {
    return answers.resolveSibling(answers.getFileName().toString().replace(ANSWERS, ".json"));
  }

  private static void add(Map<Key, Map<String, SavedRun>> columns, String label, SavedRun run) {
    var task = run.task().name();
    var file = run.file().toAbsolutePath().normalize();
    var model = run.model();
    // each own adapter may have a folder of its own; together they are one column
    var key =
        label.isEmpty()
            ? new Key("", model, model.equals("own adapter") ? "" : file.getParent().toString())
            : new Key(label, "", "");
    var before = columns.computeIfAbsent(key, k -> new LinkedHashMap<>()).putIfAbsent(task, run);
    if (before != null && !label.isEmpty()) {
      throw new UserException(
          "the label %s has two results of %s: %s and %s", label, task, before.file(), run.file());
    }
    if (before != null) {
      columns.put(new Key("", model, file.toString()), Map.of(task, run));
    }
  }

  private static List<Column> label(Map<Key, Map<String, SavedRun>> columns) {
    return columns.entrySet().stream()
        .map(each -> new Column(label(each.getKey(), columns.keySet()), each.getValue()))
        .toList();
  }

  /** By label or model; where two models are called the same, by what differs in their paths. */
  private static String label(Key key, Set<Key> all) {
    if (!key.label().isEmpty()) {
      return key.label();
    }
    var alike =
        all.stream()
            .filter(other -> other.label().isEmpty() && other.model().equals(key.model()))
            .map(Key::place)
            .toList();
    return alike.size() == 1 ? key.model() : key.model() + " " + difference(key.place(), alike);
  }

  /** The parts of a path that not all of the others have in the same place. */
  static String difference(String place, List<String> all) {
    var parts = List.of(place.split("/"));
    int front = parts.size();
    int back = parts.size();
    for (var other : all) {
      if (!other.equals(place)) {
        var others = List.of(other.split("/"));
        front = Math.min(front, common(parts, others));
        back = Math.min(back, common(parts.reversed(), others.reversed()));
      }
    }
    return front < parts.size() - back
        ? String.join("/", parts.subList(front, parts.size() - back))
        : parts.getLast();
  }

  /** How many are the same from the beginning. */
  private static int common(List<String> a, List<String> b) {
    int i = 0;
    while (i < Math.min(a.size(), b.size()) && a.get(i).equals(b.get(i))) {
      i++;
    }
    return i;
  }
}
