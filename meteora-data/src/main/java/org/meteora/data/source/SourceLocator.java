package org.meteora.data.source;

import com.fasterxml.jackson.core.JsonToken;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.ObjectReader;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Optional;
import java.util.TreeSet;
import java.util.function.Supplier;
import java.util.regex.Pattern;
import org.meteora.UserException;
import org.meteora.data.tasks.Task;
import org.meteora.data.tasks.Tasks;
import org.meteora.io.Folders;
import org.meteora.io.Jsonl;

/**
 * Finds the files of a task's source on disk and opens them, whatever their form.
 *
 * <p>BIG-bench: {@code <root>/<task>/}, as laid out by {@link
 * org.meteora.data.tasks.Source#bigBench}, with {@code train.jsonl} and {@code validation.jsonl},
 * or Parquet files named after the splits ({@code train-00000-of-00001.parquet}), or the original
 * {@code task.json}. Others: {@code <root>/<repository>/} as it lies on the Hub, with Parquet,
 * JSONL or JSON files named after the splits, for instance {@code
 * gsm8k/main/train-00000-of-00001.parquet}; the repository's name, its organisation left out, or
 * the task's name. {@code <root>} may be BIG-bench's own folder, with the other repositories beside
 * it, or the folder that holds {@code bigbench} and all the others.
 *
 * @param root the folder of sources ({@code bigbench_dataset_dir})
 */
public record SourceLocator(Path root) {
  private static final ObjectReader RECORD =
      Jsonl.JSON.reader().without(DeserializationFeature.FAIL_ON_TRAILING_TOKENS);

  /**
   * A task's records.
   *
   * @param test empty when the source has no test split
   * @param scores how a {@code task.json} would have the answers scored, the preferred score first;
   *     empty for other forms
   */
  public record Source(Records train, Optional<Records> test, Supplier<List<String>> scores) {}

  /** Folders that are looked at, first to last. */
  public List<Path> candidates(Task task) {
    var result = new LinkedHashSet<Path>();
    for (var name : task.source().folders()) {
      var folder = root.resolve(name).normalize();
      result.add(folder);
      result.add(folder.resolve("data"));
    }
    return List.copyOf(result);
  }

  /** The source of a task, if it is on disk. */
  public Optional<Source> find(Task task) {
    for (var folder : candidates(task)) {
      var train = split(folder, "train");
      if (train.isPresent()) {
        var test =
            task.source().tests().stream()
                .flatMap(name -> split(folder, name).stream())
                .findFirst();
        return Optional.of(new Source(train.get(), test, List::of));
      }
      if (TaskJson.isPresent(folder)) {
        var json = new TaskJson(folder);
        return Optional.of(new Source(json.train(), Optional.of(json.validation()), json::scores));
      }
    }
    return Optional.empty();
  }

  /**
   * Names of the tasks of BIG-bench beyond the 28 that the folder of sources holds, sorted. Other
   * folders with a split {@code train} count too: they look the same.
   */
  public List<String> otherTasks() {
    var places = org.meteora.data.tasks.Source.bigBench("any").folders();
    var names = new TreeSet<String>();
    for (var place : places) {
      for (var sub : TaskJson.subFolders(root.resolve(place).normalize().getParent())) {
        var name = sub.getFileName().toString();
        boolean partOfAPlace = places.stream().anyMatch(path -> Path.of(path).startsWith(name));
        if (!partOfAPlace
            && !name.equals("benchmark_tasks")
            && Tasks.find(name).isEmpty()
            && find(Tasks.ofBigBench(name, List.of())).isPresent()) {
          names.add(name);
        }
      }
    }
    return List.copyOf(names);
  }

  /**
   * The task of this name: one of the 28, or any other that the folder of sources holds.
   *
   * @throws UserException naming the nearest
   */
  public Task task(String name) {
    var known = Tasks.find(name);
    if (known.isPresent()) {
      return known.get();
    }
    if (otherTasks().contains(name)) {
      var scores = find(Tasks.ofBigBench(name, List.of())).orElseThrow().scores().get();
      return Tasks.ofBigBench(name, scores);
    }
    var names = new ArrayList<>(Tasks.names());
    names.addAll(otherTasks());
    throw Tasks.unknown(name, names);
  }

  private static Optional<Records> split(Path folder, String split) {
    var name = Pattern.compile("(.*[-_.])?" + split + "([-_.].*)?\\.(parquet|jsonl|json)");
    var files =
        Folders.entries(folder).stream()
            .filter(Files::isRegularFile)
            .filter(file -> name.matcher(file.getFileName().toString()).matches())
            .toList();
    // one form is enough: the first that is there
    for (var extension : List.of(".jsonl", ".parquet", ".json")) {
      var chosen = files.stream().filter(file -> file.toString().endsWith(extension)).toList();
      if (!chosen.isEmpty()) {
        return Optional.of(each -> chosen.forEach(file -> open(file).forEach(each)));
      }
    }
    return Optional.empty();
  }

  private static Records open(Path file) {
    var name = file.toString();
    if (name.endsWith(".parquet")) {
      return new ParquetRecords(file);
    }
    if (name.endsWith(".jsonl")) {
      return each -> Jsonl.forEach(file, (node, line) -> each.accept(node, file + ":" + line));
    }
    return each -> {
      try (var parser = Jsonl.JSON.createParser(file.toFile())) {
        if (parser.nextToken() != JsonToken.START_ARRAY) {
          // lines of JSON under another name
          Jsonl.forEach(file, (node, line) -> each.accept(node, file + ":" + line));
          return;
        }
        int index = 0;
        while (parser.nextToken() != JsonToken.END_ARRAY) {
          var where = file + ": record " + index++ + " (from 0)";
          if (parser.currentToken() != JsonToken.START_OBJECT) {
            throw new UserException(
                where + ": a JSON object was expected, found " + parser.getText());
          }
          each.accept(RECORD.readTree(parser), where);
        }
        if (parser.nextToken() != null) {
          throw new UserException(
              "%s:%s: something follows the JSON array"
                  .formatted(file, parser.currentTokenLocation().getLineNr()));
        }
      } catch (IOException e) {
        throw Jsonl.unreadable(file, e);
      }
    };
  }
}
