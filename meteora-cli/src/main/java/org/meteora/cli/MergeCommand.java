package org.meteora.cli;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashSet;
import java.util.List;
import java.util.OptionalInt;
import java.util.concurrent.Callable;
import org.meteora.UserException;
import org.meteora.checkpoint.MergedModel;
import org.meteora.data.config.ConfigOptions;
import org.meteora.data.config.Limits;
import org.meteora.data.config.SeedOption;
import org.meteora.io.AtomicFiles;
import org.meteora.io.FolderLock;
import org.meteora.io.FolderNames;
import org.meteora.io.Folders;
import org.meteora.io.Jsonl;
import org.meteora.lora.AdapterMerge;
import org.meteora.lora.LoraAdapter;
import org.meteora.tensor.Devices;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** {@code meteora merge}: one adapter from several. */
@Command(
    name = "merge",
    sortOptions = false,
    description = {
      "Makes one adapter of several, as PEFT's add_weighted_adapter does, and writes it as a folder"
          + " that PEFT loads; with --into-base, the base model with the merged adapter in it.",
      "linear, magnitude_prune, dare_linear, ties and dare_ties combine A's and B's apart and need"
          + " equal ranks; cat is the exact sum, in the sum of the ranks; svd is the sum at its"
          + " best in --rank; ties_svd combines whole updates."
    },
    footer = {
      "",
      "Examples:",
      "  meteora merge --method cat --output-dir adapters-merged/all",
      "  meteora merge --method ties --tasks alpaca,gsm8k --weights 0.7,0.3 --density 0.4"
          + " --output-dir adapters-merged/two",
      "  meteora merge --method svd --rank 16 --into-base --output-dir models/merged"
    })
final class MergeCommand implements Callable<Integer> {
  private static final double DENSITY = 0.5;

  @Spec private CommandSpec command;

  @Option(
      names = "--method",
      required = true,
      paramLabel = "NAME",
      description = "linear, cat, svd, ties, ties_svd, magnitude_prune, dare_linear or dare_ties.")
  private AdapterMerge.Method method;

  @Option(
      names = "--output-dir",
      required = true,
      paramLabel = "DIR",
      description = "A new folder for the result.")
  private Path output;

  @Option(
      names = "--tasks",
      split = ",",
      paramLabel = "A,B,…",
      description = "Adapters of --adapter-dir (default: all, by name).")
  private List<String> tasks;

  @Option(
      names = "--weights",
      split = ",",
      paramLabel = "X,Y,…",
      description = "One for each adapter, in their order; may be negative (default: 1/N each).")
  private List<Double> weights;

  @Option(
      names = "--density",
      paramLabel = "D",
      description =
          "Share of the values to keep, above 0 to 1, for ties…, magnitude_prune and dare…"
              + " (default: "
              + DENSITY
              + ").")
  private Double density;

  @Option(
      names = "--rank",
      paramLabel = "R",
      description = "Of the result, for svd and ties_svd (default: the adapters' largest).")
  private Integer rank;

  @Mixin private SeedOption seed;

  @Option(
      names = "--into-base",
      description =
          "Write the base model with the adapter in its weights: same shards, index, dtype and"
              + " tokenizer as --base-model-path has.")
  private boolean intoBase;

  @Mixin private ConfigOptions config;

  @Override
  public Integer call() {
    var settings = config.load();
    var adapterDir = settings.requireAdapterDir();
    var folders =
        tasks == null
            ? LoraAdapter.list(adapterDir)
            : tasks.stream()
                .map(task -> adapterDir.resolve(FolderNames.require("the adapter", task)))
                .toList();
    if (new HashSet<>(folders).size() < folders.size()) {
      throw new UserException("--tasks names an adapter twice: " + String.join(",", tasks));
    }
    var factors =
        weights == null ? Collections.nCopies(folders.size(), 1.0 / folders.size()) : weights;
    check(folders, factors);
    var base = intoBase ? settings.requireBaseModelPath() : null;
    try (var lock = FolderLock.takeOutput(output)) {
      requireNew(output);
      write(folders, factors, base);
    }
    var out = command.commandLine().getOut();
    out.println(output);
    out.flush();
    return 0;
  }

  private void write(List<Path> folders, List<Double> factors, Path base) {
    var merge =
        new AdapterMerge(
            method,
            factors,
            density == null ? DENSITY : density,
            rank == null ? OptionalInt.empty() : OptionalInt.of(rank),
            seed.orDefault());
    var opened = new ArrayList<LoraAdapter>();
    try (var manager = Devices.newHostManager()) {
      folders.forEach(folder -> opened.add(LoraAdapter.open(folder)));
      var merged = merge.run(opened, manager);
      if (intoBase) {
        MergedModel.write(base, merged, output);
      } else {
        merged.write(output, baseName(folders.getFirst()));
      }
    } finally {
      opened.forEach(LoraAdapter::close);
    }
  }

  private void check(List<Path> folders, List<Double> factors) {
    if (factors.size() != folders.size()) {
      throw new UserException(
          "--weights has %s numbers for %s adapters: ".formatted(factors.size(), folders.size())
              + String.join(
                  ",", folders.stream().map(each -> each.getFileName().toString()).toList()));
    }
    if (!factors.stream().allMatch(Double::isFinite)) {
      throw new UserException("--weights must be numbers, not " + weights);
    }
    if (density != null && !method.prunes()) {
      throw new UserException("--density has no meaning for --method " + method);
    }
    if (density != null && !(density > 0 && density <= 1)) {
      throw new UserException("--density must be above 0 and at most 1, not " + density);
    }
    if (rank != null && !method.choosesRank()) {
      throw new UserException("--rank goes with --method svd and ties_svd, not " + method);
    }
    Limits.atLeast(1, "--rank", rank);
    if (seed.value().isPresent() && !method.drops()) {
      throw new UserException("--seed goes with --method dare_linear and dare_ties, not " + method);
    }
  }

  private static void requireNew(Path folder) {
    AtomicFiles.removeLeftovers(folder);
    if (Folders.entries(folder).stream().anyMatch(entry -> !entry.endsWith(FolderLock.NAME))) {
      throw new UserException(
          "--output-dir " + folder + " is not empty: remove it, or name a new folder");
    }
  }

  /** As the first adapter calls it. */
  private static String baseName(Path adapter) {
    return Jsonl.readFile(adapter.resolve("adapter_config.json"))
        .path("base_model_name_or_path")
        .asText("");
  }
}
