package org.meteora.cli;

import java.io.OutputStream;
import java.io.PrintStream;
import java.io.PrintWriter;
import java.lang.foreign.Linker;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Optional;
import java.util.Set;
import org.meteora.TooLittleMemory;
import org.meteora.UserException;
import org.meteora.cli.StandardStreams.OutputLost;
import org.meteora.cli.demo.DemoCommand;
import org.meteora.data.command.CreateCompositeCommand;
import org.meteora.data.command.CreateDatasetCommand;
import org.meteora.data.command.DownloadCommand;
import org.meteora.data.hub.HubSourceFetcher;
import org.meteora.eval.command.CompareCommand;
import org.meteora.eval.command.EvalCommand;
import org.meteora.eval.command.RoutesCommand;
import org.meteora.foreign.Functions;
import org.meteora.io.CacheFolders;
import org.meteora.io.Printable;
import org.meteora.parallel.Launch;
import org.meteora.train.command.TrainCommand;
import org.meteora.train.command.TrainLoraCommand;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Spec;
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
public final class Main implements Runnable {
  /** What a shell reports of a program that wrote into a closed pipe: 128 + SIGPIPE. */
  static final int PIPE_CLOSED = 141;

  private static final long SAID_BY_FIRST_MILLIS = 3_000;

  @Spec private CommandSpec command;

  private Main() {}

  /** Without a command: what there is. */
  @Override
  public void run() {
    command.commandLine().usage(command.commandLine().getOut());
  }

  public static void main(String[] arguments) {
    StandardStreams.install();
    Runtime.getRuntime().addShutdownHook(new Thread(Main::endWithoutDestructors));
    if (!"UTF-8".equals(System.getProperty("sun.jnu.encoding"))) {
      System.err.println(
          "the locale is not UTF-8: arguments and file names beyond ASCII are lost; start with"
              + " bin/meteora, or set LC_ALL=C.UTF-8");
    }
    var line = commandLine();
    muteAllButFirst(line);
    line.setExecutionStrategy(
        parsed -> {
          try {
            var help = CommandLine.executeHelpRequest(parsed);
            if (help != null) {
              return help;
            }
            requireAlone(parsed);
            CacheFolders.prepare();
          } catch (UserException | OutputLost e) {
            return failure(e, line);
          }
          return new CommandLine.RunLast().execute(parsed);
        });
    int code;
    try {
      code = run(line, arguments);
      System.out.flush();
    } catch (Throwable e) { // also one that no command may catch, such as a lack of memory
      code = failure(e, line);
    }
    System.exit(code);
  }

  /**
   * A signal ends the process while threads are inside libtorch, which fails loudly once its
   * destructors have run. What the C library is told last it does first, and that is to end.
   */
  private static void endWithoutDestructors() {
    var library = Linker.nativeLinker().defaultLookup();
    var end = library.find("_exit");
    if (end.isPresent() && library.find("on_exit").isPresent()) { // glibc's
      Functions.call(Functions.bind("fflush", "(J)I"), 0L);
      Functions.call(Functions.bind("on_exit", "(AJ)I"), end.get(), 0L);
    }
  }

  /** Of several processes the first one speaks; a mistake that another one has alone is said. */
  private static void muteAllButFirst(CommandLine line) {
    int rank;
    try {
      rank = Launch.of(System.getenv()).rank();
    } catch (UserException e) {
      return; // said where the processes join
    }
    if (rank > 0) {
      var error = System.err;
      System.setOut(new PrintStream(OutputStream.nullOutputStream()));
      System.setErr(new PrintStream(OutputStream.nullOutputStream()));
      line.setErr(
          new PrintWriter(error, true) {
            @Override
            public void println(String text) {
              try {
                // the first one says it too, most often, and whoever started them ends all then
                Thread.sleep(SAID_BY_FIRST_MILLIS);
              } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
              }
              super.println("rank " + rank + ": " + text);
            }
          });
    }
  }

  /** Refuses several processes for the work of one. */
  private static void requireAlone(CommandLine.ParseResult parsed) {
    while (parsed.hasSubcommand()) {
      parsed = parsed.subcommand();
    }
    int size = Launch.of(System.getenv()).size();
    if (size > 1 && parsed.commandSpec().findOption("--processes") == null) {
      throw new UserException(
          "meteora %s is the work of one process, and this is one of %s: start it alone"
              .formatted(parsed.commandSpec().name(), size));
    }
  }

  /** Runs one command and returns its exit code. */
  public static int run(String... arguments) {
    return run(commandLine(), arguments);
  }

  private static int run(CommandLine line, String... arguments) {
    var names = new HashSet<String>();
    addOptionNames(line, names);
    return line.execute(
        Arrays.stream(arguments).map(each -> kebab(each, names)).toArray(String[]::new));
  }

  private static void addOptionNames(CommandLine line, Set<String> names) {
    line.getCommandSpec().options().forEach(option -> names.addAll(List.of(option.names())));
    line.getSubcommands().values().forEach(sub -> addOptionNames(sub, names));
  }

  /** The whole command line, for help texts and tests. */
  static CommandLine commandLine() {
    var root = new CommandLine(new Main());
    for (var command :
        new Object[] {
          new InitCommand(),
          new CreateDatasetCommand(new HubSourceFetcher()),
          new CreateCompositeCommand(),
          new DownloadCommand(),
          new TrainLoraCommand(),
          new TrainCommand(),
          new MergeCommand(),
          new EvalCommand(),
          new CompareCommand(),
          new GenerateCommand(),
          new RoutesCommand(),
          new DemoCommand(Main::run, PIPE_CLOSED),
          new DoctorCommand(),
          new BenchCommand(),
          new CompletionCommand()
        }) {
      root.addSubcommand(command);
    }
    addHelp(root);
    HelpLayout.apply(root);
    root.setUsageHelpAutoWidth(true);
    root.setColorScheme(CommandLine.Help.defaultColorScheme(CommandLine.Help.Ansi.OFF));
    root.setExpandAtFiles(false); // a prompt that begins with @ is a prompt
    root.setCaseInsensitiveEnumValuesAllowed(true);
    root.setParameterExceptionHandler(Main::parameterError);
    root.setExecutionExceptionHandler((exception, line, parsed) -> failure(exception, line));
    return root;
  }

  private static void addHelp(CommandLine line) {
    for (var sub : line.getSubcommands().values()) {
      sub.getCommandSpec().mixinStandardHelpOptions(true);
      addHelp(sub);
    }
  }

  /**
   * {@code --batch_size} is {@code --batch-size}: both spellings of every option. Anything else, a
   * prompt for one, stays as it is.
   */
  static String kebab(String argument, Set<String> options) {
    if (!argument.startsWith("--")) {
      return argument;
    }
    int equals = argument.indexOf('=');
    var name = equals < 0 ? argument : argument.substring(0, equals);
    var kebab = name.replace('_', '-');
    return options.contains(kebab) ? kebab + argument.substring(name.length()) : argument;
  }

  private static int parameterError(ParameterException exception, String[] arguments) {
    var line = exception.getCommandLine();
    var message = Printable.line(exception.getMessage());
    if (exception instanceof UnmatchedArgumentException unmatched
        && !unmatched.getUnmatched().isEmpty()) {
      var suggestions = String.join(" or ", unmatched.getSuggestions());
      message =
          (unmatched.isUnknownOption() ? "unknown option " : "unknown argument ")
              + Printable.line(unmatched.getUnmatched().getFirst())
              + (suggestions.isEmpty() ? "" : "; did you mean " + suggestions + "?");
    }
    line.getErr()
        .println(
            message + " (" + line.getCommandSpec().qualifiedName() + " --help shows the options)");
    return CommandLine.ExitCode.USAGE;
  }

  private static int failure(Throwable exception, CommandLine line) {
    if (System.getenv("METEORA_DEBUG") != null) {
      exception.printStackTrace(line.getErr());
    }
    if (exception instanceof OutputLost lost) {
      if (lost.pipeClosed()) {
        return PIPE_CLOSED;
      }
      line.getErr().println(Printable.line(lost.getMessage()));
      return CommandLine.ExitCode.SOFTWARE;
    }
    var mistake =
        exception instanceof UserException mine && !(mine instanceof TooLittleMemory)
            ? Optional.of(mine)
            : CacheFolders.explain(exception).or(() -> MemoryAdvice.explain(exception, line));
    var text = mistake.map(Throwable::getMessage).orElseGet(() -> unexpected(exception));
    line.getErr().println(Printable.line(text));
    return mistake.isPresent() ? CommandLine.ExitCode.USAGE : CommandLine.ExitCode.SOFTWARE;
  }

  /** The failure and, where it is another, what caused it in the first place. */
  private static String unexpected(Throwable exception) {
    var root = exception;
    while (root.getCause() != null && root.getCause() != root) {
      root = root.getCause();
    }
    var text =
        "meteora failed: " + exception.getClass().getSimpleName() + ": " + exception.getMessage();
    if (root != exception
        && !String.valueOf(exception.getMessage()).contains("" + root.getMessage())) {
      text += ": " + root.getClass().getSimpleName() + ": " + root.getMessage();
    }
    return text + " (METEORA_DEBUG=1 shows where)";
  }
}
