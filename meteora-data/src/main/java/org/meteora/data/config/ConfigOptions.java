package org.meteora.data.config;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Optional;
import picocli.CommandLine.Option;

/**
 * The options that every command with settings shares: {@code --config}, and one for each of its
 * keys.
 */
public final class ConfigOptions {
  @Option(
      names = "--config",
      paramLabel = "FILE",
      description =
          "Settings in YAML (default: config.yaml in the working folder, if there is one).")
  private Path config;

  @Option(
      names = "--base-model-path",
      paramLabel = "DIR",
      description = "A Hugging Face Llama folder.")
  private String baseModelPath;

  @Option(
      names = "--meteora-ckpt-path",
      paramLabel = "PATH",
      description = "A MeteoRA checkpoint, folder or file.")
  private String meteoraCkptPath;

  @Option(
      names = "--adapter-dir",
      paramLabel = "DIR",
      description = "PEFT adapters, one folder each.")
  private String adapterDir;

  @Option(
      names = "--bigbench-dataset-dir",
      paramLabel = "DIR",
      description = "Sources of the tasks (default: data).")
  private String bigbenchDatasetDir;

  @Option(names = "--target-dir", paramLabel = "DIR", description = "Datasets (default: datasets).")
  private String targetDir;

  @Option(
      names = "--eval-result-save-dir",
      paramLabel = "DIR",
      description = "Results (default: eval/results).")
  private String evalResultSaveDir;

  /**
   * The file's settings with the options over them.
   *
   * @throws org.meteora.UserException when the file is missing or wrong
   */
  public MeteoraConfig load() {
    var here = Path.of("config.yaml");
    var file =
        config == null && !Files.isRegularFile(here)
            ? MeteoraConfig.DEFAULTS
            : MeteoraConfig.read(config == null ? here : config);
    return new MeteoraConfig(
        over(baseModelPath, file.baseModelPath()),
        over(meteoraCkptPath, file.meteoraCkptPath()),
        over(adapterDir, file.adapterDir()),
        over(bigbenchDatasetDir, Optional.of(file.bigbenchDatasetDir())).orElseThrow(),
        over(targetDir, Optional.of(file.targetDir())).orElseThrow(),
        over(evalResultSaveDir, Optional.of(file.evalResultSaveDir())).orElseThrow(),
        file.routingTopK(),
        file.routingTemperature(),
        file.flags(),
        file.train());
  }

  private static Optional<Path> over(String option, Optional<Path> file) {
    return option == null ? file : Optional.of(MeteoraConfig.expand(option));
  }
}
