package org.meteora.data.command;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.Callable;
import org.meteora.UserException;
import org.meteora.data.hub.ConfigLines;
import org.meteora.data.hub.HubClient;
import org.meteora.data.hub.HubDownloader;
import org.meteora.data.hub.HubSettings;
import org.meteora.data.hub.KnownRepository;
import org.meteora.data.hub.Repository;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;
import picocli.CommandLine.Spec;

/** {@code meteora download}: fetches models, checkpoints and data sets from the Hub. */
@Command(
    name = "download",
    mixinStandardHelpOptions = true,
    sortOptions = false,
    description = {
      "Fetches a repository from the Hugging Face Hub, checks every file's hash, and can be stopped"
          + " and started again at any moment without fetching anything twice.",
      "",
      "Short names (repository, default folder):",
      "  meteora-llama2-13b  ParagonLight/MeteoRA-llama2-13b  ckpt/MeteoRA-llama2-13b",
      "  meteora-llama3-8b   ParagonLight/MeteoRA-llama3-8b   ckpt/MeteoRA-llama3-8b",
      "  llama2-13b          meta-llama/Llama-2-13b-hf        models/Llama-2-13b-hf (gated)",
      "  llama3-8b           meta-llama/Meta-Llama-3-8B       models/Meta-Llama-3-8B (gated)",
      "  meteora-dataset     NJUDeepEngine/meteora_dataset    sources/meteora-dataset",
      "  bigbench            tasksource/bigbench              sources/bigbench",
      "  gsm8k               openai/gsm8k                     sources/gsm8k",
      "  cnn_dailymail       abisee/cnn_dailymail             sources/cnn_dailymail",
      "  news_commentary     Helsinki-NLP/news_commentary     sources/news_commentary",
      "  alpaca              tatsu-lab/alpaca                 sources/alpaca",
      "",
    },
    footer = {
      "",
      "Environment: HF_TOKEN (or the file HF_HOME/token), HF_ENDPOINT, HF_HOME, HF_HUB_CACHE.",
      "",
      "Examples:",
      "  meteora download llama3-8b",
      "  meteora download meteora-llama3-8b --include '*top_2/*' --include '*_peft/*'"
          + " --write-config",
      "  meteora download tasksource/bigbench --type dataset --to sources/bigbench",
    })
public final class DownloadCommand implements Callable<Integer> {
  @Spec private CommandSpec spec;

  @Parameters(paramLabel = "NAME|ORG/REPO", description = "A short name, or a repository.")
  private String name;

  @Option(
      names = "--revision",
      paramLabel = "NAME",
      defaultValue = "main",
      description = "Branch, tag or commit (default: ${DEFAULT-VALUE}).")
  private String revision;

  @Option(
      names = "--include",
      paramLabel = "GLOB",
      description =
          "Only files whose path matches; may be repeated. * also stands for slashes, as in the"
              + " Hub's own tools.")
  private List<String> includes = List.of();

  @Option(
      names = "--to",
      paramLabel = "DIR",
      description = "Folder to fill (default: models/NAME or sources/NAME).")
  private Optional<Path> to;

  @Option(
      names = "--type",
      paramLabel = "model|dataset",
      description = "Kind of repository (default: model, or what a short name is).")
  private Optional<Repository.Type> type;

  @Option(
      names = "--write-config",
      description = "Set the paths in the config file instead of printing them.")
  private boolean writeConfig;

  @Option(
      names = "--config",
      paramLabel = "FILE",
      defaultValue = "config.yaml",
      description = "The config file that --write-config sets (default: ${DEFAULT-VALUE}).")
  private Path config;

  @Override
  public Integer call() throws InterruptedException {
    return run(new HubClient(HubSettings.fromEnvironment()));
  }

  int run(HubClient hub) throws InterruptedException {
    var known = KnownRepository.find(name);
    if (known.isEmpty() && !name.contains("/")) {
      throw new UserException(
          "no short name %s (there are %s); a repository is given as ORG/REPO",
          name,
          String.join(", ", KnownRepository.ALL.stream().map(KnownRepository::name).toList()));
    }
    var kind = type.or(() -> known.map(KnownRepository::type)).orElse(Repository.Type.MODEL);
    var id = known.map(KnownRepository::id).orElse(name);
    var entry = known.or(() -> KnownRepository.ofId(kind, id));
    var repository = new Repository(kind, id, revision);
    var folder =
        to.or(() -> entry.map(e -> Path.of(e.folder())))
            .orElseGet(
                () ->
                    Path.of(kind == Repository.Type.MODEL ? "models" : "sources")
                        .resolve(id.substring(id.indexOf('/') + 1)));
    var wanted =
        includes.isEmpty() ? known.map(KnownRepository::includes).orElse(List.of()) : includes;
    var result = new HubDownloader(hub).download(repository, wanted, folder);
    var out = spec.commandLine().getOut();
    out.printf(
        "%d files in %s (%s at %s; %d fetched now)%n",
        result.files().size(), folder, repository, result.commit(), result.fetched());
    if (kind == Repository.Type.MODEL) {
      writeConfig(entry, result);
    }
    out.flush();
    return 0;
  }

  private void writeConfig(Optional<KnownRepository> entry, HubDownloader.Result result) {
    var out = spec.commandLine().getOut();
    var base = entry.map(KnownRepository::baseModel).flatMap(KnownRepository::find);
    var baseFolder = base.map(known -> Path.of(known.folder()).toAbsolutePath().normalize());
    var lines =
        ConfigLines.of(result.folder().toAbsolutePath().normalize(), result.files(), baseFolder);
    if (lines.isEmpty()) {
      return;
    }
    if (writeConfig) {
      ConfigLines.write(config, lines);
      out.println("set in " + config + ":");
    } else {
      out.println("for config.yaml (--write-config sets it):");
    }
    lines.forEach((key, value) -> out.println(ConfigLines.line(key, value)));
    if (lines.containsKey("meteora_ckpt_path") && base.isEmpty()) {
      out.println("# and base_model_path: the base model that these were trained on");
    } else if (base.isPresent() && !Files.isDirectory(baseFolder.get())) {
      out.println("# the base model is not there yet: meteora download " + base.get().name());
    }
  }
}
