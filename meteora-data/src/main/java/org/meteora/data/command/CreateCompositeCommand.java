package org.meteora.data.command;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.Callable;
import org.meteora.UserException;
import org.meteora.data.Sample;
import org.meteora.data.composite.CompositeMaker;
import org.meteora.data.composite.CompositeTask;
import org.meteora.data.config.ConfigOptions;
import org.meteora.data.config.Limits;
import org.meteora.data.config.SeedOption;
import org.meteora.io.AtomicFiles;
import org.meteora.io.FolderLock;
import org.meteora.io.Jsonl;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

@Command(
    name = "create-composite",
    customSynopsis = "(--n 3|5|10 | --tasks A,B,…)",
    description =
        "Asks several tasks in one prompt: writes <target_dir>/composite_<n>/test.jsonl from the"
            + " tasks' test data.",
    footer = {
      "",
      "Examples:",
      "  meteora create-composite --n 10",
      "  meteora create-composite --n 10 --header-from published/test.jsonl --no-shuffle",
      "  meteora create-composite --tasks gsm8k,alpaca --nums 50"
    })
public final class CreateCompositeCommand implements Callable<Integer> {
  @Mixin private ConfigOptions config;

  @Option(
      names = "--n",
      paramLabel = "3|5|10",
      description = "The paper's composite task of this many tasks.")
  private Integer n;

  @Option(
      names = "--tasks",
      split = ",",
      paramLabel = "A,B,…",
      description = "Any other tasks, in this order.")
  private List<String> tasks;

  @Option(
      names = "--nums",
      paramLabel = "N",
      defaultValue = "200",
      description = "Samples (default: ${DEFAULT-VALUE}).")
  private int nums;

  @Mixin private SeedOption seed;

  @Option(
      names = "--header-from",
      paramLabel = "FILE",
      description = "Take the header (worked examples) of an existing composite file.")
  private Path headerFrom;

  @Option(names = "--no-shuffle", description = "Take each task's samples in file order.")
  private boolean noShuffle;

  @Override
  public Integer call() {
    var settings = config.load();
    var composite = composite();
    Limits.atLeast(1, "--nums", nums);
    var samples = new ArrayList<List<Sample>>();
    for (var task : composite.tasks()) {
      samples.add(read(settings.targetDir(), task, "test.jsonl"));
    }
    String header;
    if (headerFrom != null) {
      header = CompositeMaker.headerOf(Sample.read(headerFrom));
    } else {
      var examples = List.of(new ArrayList<Sample>(), new ArrayList<Sample>());
      var random = new Random(seed.orDefault());
      for (var task : composite.tasks()) {
        var train = read(settings.targetDir(), task, "train.jsonl");
        examples.forEach(example -> example.add(train.get(random.nextInt(train.size()))));
      }
      header = CompositeMaker.header(List.copyOf(examples));
    }
    var made = CompositeMaker.make(header, samples, nums, !noShuffle, seed.orDefault());
    var folder = settings.targetDir().resolve(composite.name());
    var parts = Map.of("tasks", composite.tasks());
    try (var lock = FolderLock.takeOutput(folder)) {
      Sample.write(folder.resolve("test.jsonl"), made);
      AtomicFiles.writeString(folder.resolve("composite.json"), Jsonl.pretty(parts));
    }
    System.out.println(
        "%s: %s samples of %s in %s"
            .formatted(
                composite.name(),
                made.size(),
                String.join(", ", composite.tasks()),
                folder.resolve("test.jsonl")));
    return 0;
  }

  private static List<Sample> read(Path targetDir, String task, String name) {
    var file = targetDir.resolve(task).resolve(name);
    if (!Files.isRegularFile(file)) {
      throw new UserException(
          "no data for %s: there is no %s; \"meteora create-dataset --task %s\" makes it"
              .formatted(task, file, task));
    }
    return Sample.read(file);
  }

  private CompositeTask composite() {
    if ((n == null) == (tasks == null)) {
      throw new UserException("give either --n 3, 5 or 10, or --tasks with a list");
    }
    if (n != null) {
      return CompositeTask.published(n)
          .orElseThrow(
              () ->
                  new UserException(
                      "--n must be 3, 5 or 10, it is " + n + "; for other tasks use --tasks"));
    }
    if (tasks.size() < 2) {
      throw new UserException("--tasks needs at least two tasks");
    }
    return new CompositeTask("composite_" + tasks.size(), List.copyOf(tasks));
  }
}
