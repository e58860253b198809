package org.meteora.cli;

import java.util.Arrays;
import org.meteora.UserException;
import org.meteora.cli.demo.DemoCommand;
import org.meteora.data.command.CreateCompositeCommand;
import org.meteora.data.command.CreateDatasetCommand;
import org.meteora.data.command.DownloadCommand;
import org.meteora.data.hub.HubSourceFetcher;
import org.meteora.eval.command.CompareCommand;
import org.meteora.eval.command.EvalCommand;
import org.meteora.eval.command.RoutesCommand;
import org.meteora.train.command.TrainCommand;
import org.meteora.train.command.TrainLoraCommand;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.UnmatchedArgumentException;

/**
 * The {@code meteora} command. Exit codes: 0 done; 1 something failed or is missing; 2 the user's
 * mistake, said in one line.
 */
@Command(
    name = "meteora",
    mixinStandardHelpOptions = true,
    version = "meteora 0.1.0",
    description =
        "Many LoRA adapters in one Llama, chosen token by token (MeteoRA, arXiv 2405.13053).",
    synopsisSubcommandLabel = "COMMAND",
    footer = {"", "meteora COMMAND --help shows a command's options and examples."})
public final class Main {
  private Main() {}

  public static void main(String[] arguments) {
    // the tokenizers' native library asks for a CUDA build where it sees a GPU; the CPU's does the
    // same work
    System.setProperty("RUST_FLAVOR", System.getProperty("RUST_FLAVOR", "cpu"));
    System.exit(run(arguments));
  }

  /** Runs one command and returns its exit code. */
  public static int run(String... arguments) {
    return commandLine().execute(Arrays.stream(arguments).map(Main::kebab).toArray(String[]::new));
  }

  /** The whole command line, for help texts and tests. */
  static CommandLine commandLine() {
    var root = new CommandLine(new Main());
    for (var command :
        new Object[] {
          new CreateDatasetCommand(HubSourceFetcher::fromEnvironment),
          new CreateCompositeCommand(),
          new DownloadCommand(),
          new TrainLoraCommand(),
          new TrainCommand(),
          new EvalCommand(),
          new CompareCommand(),
          new GenerateCommand(),
          new RoutesCommand(),
          new DemoCommand(Main::run),
          new BenchCommand()
        }) {
      root.addSubcommand(command);
    }
    addHelp(root);
    root.setUsageHelpAutoWidth(true);
    root.setCaseInsensitiveEnumValuesAllowed(true);
    root.setParameterExceptionHandler(Main::parameterError);
    root.setExecutionExceptionHandler((exception, line, parsed) -> failure(exception, line));
    return root;
  }

  private static void addHelp(CommandLine line) {
    for (var sub : line.getSubcommands().values()) {
      if (!sub.getCommandSpec().mixinStandardHelpOptions()) {
        sub.getCommandSpec().mixinStandardHelpOptions(true);
      }
      addHelp(sub);
    }
  }

  /** {@code --batch_size} is {@code --batch-size}: both spellings of every option. */
  static String kebab(String argument) {
    if (!argument.startsWith("--")) {
      return argument;
    }
    int equals = argument.indexOf('=');
    var name = equals < 0 ? argument : argument.substring(0, equals);
    return name.matches("--[A-Za-z0-9_-]+")
        ? name.replace('_', '-') + argument.substring(name.length())
        : argument;
  }

  private static int parameterError(ParameterException exception, String[] arguments) {
    var line = exception.getCommandLine();
    var message = new StringBuilder(oneLine(exception.getMessage()));
    if (exception instanceof UnmatchedArgumentException unmatched
        && !unmatched.getUnmatched().isEmpty()) {
      var suggestions = unmatched.getSuggestions();
      message.setLength(0);
      message
          .append("unknown ")
          .append(unmatched.isUnknownOption() ? "option " : "argument ")
          .append(unmatched.getUnmatched().getFirst());
      if (!suggestions.isEmpty()) {
        message.append("; did you mean ").append(String.join(" or ", suggestions)).append('?');
      }
    }
    line.getErr()
        .println(
            message + " (" + line.getCommandSpec().qualifiedName() + " --help shows the options)");
    return CommandLine.ExitCode.USAGE;
  }

  private static int failure(Exception exception, CommandLine line) {
    if (System.getenv("METEORA_DEBUG") != null) {
      exception.printStackTrace(line.getErr());
    }
    if (exception instanceof UserException) {
      line.getErr().println(oneLine(exception.getMessage()));
      return CommandLine.ExitCode.USAGE;
    }
    line.getErr()
        .println(
            "meteora failed: "
                + exception.getClass().getSimpleName()
                + ": "
                + oneLine(String.valueOf(exception.getMessage()))
                + " (METEORA_DEBUG=1 shows where)");
    return CommandLine.ExitCode.SOFTWARE;
  }

  private static String oneLine(String text) {
    return text == null ? "" : text.strip().replaceAll("\\s*\\R\\s*", " ");
  }
}
