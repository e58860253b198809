package org.meteora.data.source;

import com.fasterxml.jackson.core.JsonToken;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.ObjectReader;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Optional;
import java.util.regex.Pattern;
import org.meteora.UserException;
import org.meteora.data.tasks.Task;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Jsonl;

/**
 * Finds the files of a task's source on disk and opens them, whatever their form.
 *
 * <p>BIG-bench: {@code <root>/<task>/} with {@code train.jsonl} and {@code validation.jsonl}, or
 * Parquet files named after the splits ({@code train-00000-of-00001.parquet}), or the original
 * {@code task.json}. Others: {@code <root>/<repository>/} as it lies on the Hub, with Parquet,
 * JSONL or JSON files named after the splits, for instance {@code
 * gsm8k/main/train-00000-of-00001.parquet}; the repository's name, its organisation left out, or
 * the task's name. {@code <root>} may be BIG-bench's own folder, with the other repositories beside
 * it, or the folder that holds {@code bigbench} and all the others.
 */
public final class SourceLocator {
  private static final ObjectReader RECORD =
      Jsonl.JSON.reader().without(DeserializationFeature.FAIL_ON_TRAILING_TOKENS);

  private final Path root;

  /**
   * @param root the folder of sources ({@code bigbench_dataset_dir})
   */
  public SourceLocator(Path root) {
    this.root = root;
  }

  /**
   * A task's records.
   *
   * @param test empty when the source has no test split
   */
  public record Source(Records train, Optional<Records> test) {}

  /** Folders that are looked at, first to last. */
  public List<Path> candidates(Task task) {
    var names = new LinkedHashSet<String>();
    switch (task.source()) {
      case BIGBENCH ->
          names.addAll(
              List.of(
                  task.name(),
                  "bigbench/" + task.name(),
                  // the package's own layout
                  "benchmark_tasks/" + task.name(),
                  "bigbench/benchmark_tasks/" + task.name()));
      case ALPACA -> names.add("alpaca");
      case CNN_DAILYMAIL -> names.addAll(List.of("cnn_dailymail/3.0.0", "cnn_dailymail"));
      case GSM8K -> names.addAll(List.of("gsm8k/main", "gsm8k"));
      case NEWS_COMMENTARY_DE ->
          names.addAll(List.of("news_commentary/de-en", "news_commentary_de"));
      case NEWS_COMMENTARY_ES ->
          names.addAll(List.of("news_commentary/en-es", "news_commentary_es"));
      case NEWS_COMMENTARY_IT ->
          names.addAll(List.of("news_commentary/en-it", "news_commentary_it"));
    }
    var result = new LinkedHashSet<Path>();
    for (var name : names) {
      result.add(root.resolve(name));
      result.add(root.resolve(name).resolve("data"));
    }
    if (task.source() == Task.Source.BIGBENCH) {
      result.add(root.resolve("data").resolve(task.name()));
    } else {
      // beside BIG-bench, where `download` puts each repository
      for (var name : names) {
        result.add(root.resolve("..").resolve(name).normalize());
        result.add(root.resolve("..").resolve(name).normalize().resolve("data"));
      }
    }
    return List.copyOf(result);
  }

  /** The source of a task, if it is on disk. */
  public Optional<Source> find(Task task) {
    for (var folder : candidates(task)) {
      if (!Files.isDirectory(folder)) {
        continue;
      }
      var train = split(folder, "train");
      if (train.isPresent()) {
        var test = split(folder, "validation");
        if (task.source() != Task.Source.BIGBENCH) {
          test = split(folder, "test").or(() -> split(folder, "validation"));
        }
        return Optional.of(new Source(train.get(), test));
      }
      if (task.source() == Task.Source.BIGBENCH && TaskJson.isPresent(folder)) {
        var json = TaskJson.in(folder);
        return Optional.of(new Source(json.train(), Optional.of(json.validation())));
      }
    }
    return Optional.empty();
  }

  private static Optional<Records> split(Path folder, String split) {
    var name = Pattern.compile("(.*[-_.])?" + split + "([-_.].*)?\\.(parquet|jsonl|json)");
    List<Path> files;
    try (var entries = Files.list(folder)) {
      files =
          entries
              .filter(Files::isRegularFile)
              .filter(file -> name.matcher(file.getFileName().toString()).matches())
              .sorted()
              .toList();
    } catch (IOException e) {
      throw new UserException("cannot read the folder " + folder + ": " + AtomicFiles.reason(e), e);
    }
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
              file
                  + ":"
                  + parser.currentTokenLocation().getLineNr()
                  + ": something follows the JSON array");
        }
      } catch (IOException e) {
        throw new UserException(
            file
                + ": not valid JSON: "
                + String.valueOf(e.getMessage()).lines().findFirst().orElse(""));
      }
    };
  }
}
