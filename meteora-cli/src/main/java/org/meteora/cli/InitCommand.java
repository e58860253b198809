package org.meteora.cli;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.Callable;
import org.meteora.UserException;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Texts;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** {@code meteora init}: a config.yaml to fill in. */
@Command(
    name = "init",
    description =
        "Writes a config.yaml with every key explained; three lines of it are to be filled in.",
    footer = {"", "Examples:", "  meteora init", "  meteora init --out experiments/config.yaml"})
final class InitCommand implements Callable<Integer> {
  @Spec private CommandSpec command;

  @Option(
      names = "--out",
      paramLabel = "FILE",
      defaultValue = "config.yaml",
      description = "Where to write it (default: ${DEFAULT-VALUE}).")
  private Path file;

  @Override
  public Integer call() {
    if (Files.exists(file)) {
      throw new UserException(file + " is there already: remove it, or name another by --out");
    }
    AtomicFiles.writeString(file, template());
    var out = command.commandLine().getOut();
    out.println(file + " is written. Fill in:");
    out.println("  base_model_path    a Llama folder (meteora download llama3-8b fetches one)");
    out.println("  adapter_dir        your adapters, or where meteora train-lora shall put them");
    out.println("  meteora_ckpt_path  where meteora train puts its checkpoint, or a published one");
    out.flush();
    return 0;
  }

  /** The file as it is written. */
  static String template() {
    return Texts.resource(InitCommand.class, "/config.yaml");
  }
}
