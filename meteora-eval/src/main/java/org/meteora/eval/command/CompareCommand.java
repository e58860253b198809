package org.meteora.eval.command;

import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.Callable;
import org.meteora.UserException;
import org.meteora.data.config.Limits;
import org.meteora.data.config.SeedOption;
import org.meteora.eval.compare.Comparer;
import org.meteora.eval.compare.ComparisonHtml;
import org.meteora.eval.compare.ComparisonText;
import org.meteora.eval.statistics.Bootstrap;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Jsonl;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;
import picocli.CommandLine.Spec;

/** {@code meteora compare}: saved evaluations side by side. */
@Command(
    name = "compare",
    mixinStandardHelpOptions = true,
    sortOptions = false,
    description = {
      "Puts saved evaluations side by side: scores by task and their means with 95 %% intervals,"
          + " differences from the first on the same samples (paired bootstrap; McNemar's exact"
          + " test for accuracies), the samples where they differ, and a warning for whatever makes"
          + " the comparison unfair.",
      "Results of one folder and one model make a column; so do the adapters' results on their own"
          + " tasks."
    },
    footer = {
      "",
      "Examples:",
      "  meteora compare eval/results",
      "  meteora compare eval/results/base eval/results/meteora --out comparison.html",
      "  meteora compare gate=runs/a/composite_10.json arrow=runs/b/composite_10.json",
      "  meteora compare eval/results/meteora/composite_10.json --published --out table.md"
    })
public final class CompareCommand implements Callable<Integer> {
  @Spec private CommandSpec command;

  @Parameters(
      paramLabel = "[LABEL=]RESULT",
      arity = "1..*",
      description =
          "A <task>.json that eval --save wrote, or a folder of them. The first is what the others"
              + " are compared with.")
  private List<String> results;

  @Option(
      names = "--out",
      paramLabel = "FILE",
      description =
          "Write the comparison to a file too: .html (one page with plots), .md, .json (with every"
              + " sample) or .txt, by its ending. May be repeated.")
  private List<Path> files = List.of();

  @Option(
      names = "--published",
      description = "With the paper's scores of composite_10 (Llama 3 8B) beside.")
  private boolean published;

  @Option(
      names = "--samples",
      paramLabel = "N",
      defaultValue = "3",
      description =
          "Samples to show of each task, where the results differ (default: ${DEFAULT-VALUE}).")
  private int samples;

  @Option(
      names = "--resamples",
      paramLabel = "N",
      defaultValue = "" + Bootstrap.RESAMPLES,
      description = "Of the bootstrap (default: ${DEFAULT-VALUE}).")
  private int resamples;

  @Mixin private SeedOption seed;

  @Override
  public Integer call() {
    Limits.atLeast(1, "--resamples", resamples);
    Limits.atLeast(0, "--samples", samples);
    for (var file : files) {
      ending(file);
      AtomicFiles.requireWritableFolder(file.toAbsolutePath().getParent());
    }
    var comparison = Comparer.compare(results, resamples, seed.orDefault(), published);
    for (var file : files) {
      AtomicFiles.writeString(
          file,
          switch (ending(file)) {
            case "html" -> ComparisonHtml.of(comparison);
            case "md" -> ComparisonText.markdown(comparison, samples);
            case "json" -> Jsonl.pretty(comparison);
            default -> ComparisonText.plain(comparison, samples);
          });
    }
    var out = command.commandLine().getOut();
    out.print(ComparisonText.plain(comparison, samples));
    out.flush();
    return 0;
  }

  private static String ending(Path file) {
    var name = file.getFileName().toString();
    var ending = name.substring(name.lastIndexOf('.') + 1);
    if (!List.of("html", "md", "json", "txt").contains(ending)) {
      throw new UserException("--out " + file + ": a name in .html, .md, .json or .txt is needed");
    }
    return ending;
  }
}
