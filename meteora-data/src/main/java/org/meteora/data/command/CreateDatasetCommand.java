package org.meteora.data.command;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;
import org.meteora.UserException;
import org.meteora.data.config.ConfigOptions;
import org.meteora.data.config.SeedOption;
import org.meteora.data.source.DatasetMaker;
import org.meteora.data.source.SourceFetcher;
import org.meteora.data.source.SourceLocator;
import org.meteora.data.tasks.Tasks;
import org.meteora.io.AtomicFiles;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

@Command(
    name = "create-dataset",
    customSynopsis = "(--task NAME | --list)",
    description =
        "Turns the sources of the 28 tasks, or of any other task of BIG-bench, into prompts and"
            + " answers, <target_dir>/<task>/{train,test}.jsonl.",
    footer = {
      "",
      "Examples:",
      "  meteora create-dataset --task all",
      "  meteora create-dataset --task gsm8k,strategyqa --bigbench-dataset-dir data --offline",
      "  meteora create-dataset --list --bigbench-dataset-dir data",
      "  meteora create-dataset --task date_understanding --bigbench-dataset-dir data"
    })
public final class CreateDatasetCommand implements Callable<Integer> {
  @Mixin private ConfigOptions config;

  @Option(
      names = "--task",
      paramLabel = "all|NAME,…",
      split = ",",
      description =
          "Some of the 28 tasks, all of them, or any other tasks of BIG-bench that the folder of"
              + " sources holds.")
  private List<String> names;

  @Option(
      names = "--list",
      description = "Print the 28 tasks and what else the folder of sources holds, and no more.")
  private boolean list;

  @Mixin private SeedOption seed;

  @Option(names = "--offline", description = "Download nothing: use what is on disk.")
  private boolean offline;

  private final SourceFetcher fetcher;

  /** The fetcher brings what is missing, unless {@code --offline}. */
  public CreateDatasetCommand(SourceFetcher fetcher) {
    this.fetcher = fetcher;
  }

  @Override
  public Integer call() {
    var settings = config.load();
    var root = settings.bigbenchDatasetDir();
    var locator = new SourceLocator(root);
    if (list == (names != null)) {
      throw new UserException("create-dataset needs either --task NAME or --list");
    }
    if (list) {
      Tasks.names().forEach(System.out::println);
      locator.otherTasks().forEach(name -> System.out.println(name + "  (in " + root + ")"));
      return 0;
    }
    var tasks =
        names.equals(List.of("all"))
            ? List.copyOf(Tasks.all())
            : names.stream().map(locator::task).distinct().toList();
    AtomicFiles.requireWritableFolder(settings.targetDir());
    var maker = new DatasetMaker(settings.targetDir(), seed.orDefault());
    var download = offline ? SourceFetcher.NONE : fetcher;
    var rows = new ArrayList<String>();
    boolean incomplete = false;
    for (var each : tasks) {
      var places = locator.candidates(each);
      var problem = "";
      var source = locator.find(each);
      if (source.isEmpty()) {
        try {
          download.fetch(each, places.getFirst());
          source = locator.find(each);
        } catch (UserException e) {
          problem = "; " + e.getMessage();
        }
      }
      if (source.isEmpty()) {
        incomplete = true;
        var looked =
            tasks.size() > 1
                ? places.getFirst() + " and " + (places.size() - 1) + " other places"
                : places.stream().map(Object::toString).collect(Collectors.joining(", "));
        rows.add("%-42s missing; looked for in %s%s".formatted(each.name(), looked, problem));
        continue;
      }
      try {
        var written = maker.make(each, source.get());
        rows.add(
            String.format(
                "%-42s written  %,9d train %,8d test  sha256 %s",
                each.name(), written.train(), written.test(), written.sha256().substring(0, 16)));
      } catch (UserException e) {
        if (tasks.size() == 1) {
          throw e;
        }
        incomplete = true;
        rows.add(String.format("%-42s failed; %s", each.name(), e.getMessage()));
      }
    }
    rows.forEach(System.out::println);
    return incomplete ? 1 : 0;
  }
}
