package org.meteora.cli.demo;

import java.nio.file.Path;
import java.util.concurrent.Callable;
import java.util.function.ToIntFunction;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** {@code meteora demo}: the whole workflow on six small tasks, in a few minutes. */
@Command(
    name = "demo",
    mixinStandardHelpOptions = true,
    description = {
      "Runs the paper's whole workflow on six small tasks, without network, in under ten minutes on"
          + " two cores: data, an adapter a task, gates over all adapters, evaluation of single and"
          + " composite prompts, and the routing of a composite answer. Shows each command before"
          + " it runs it, and leaves everything in a folder.",
    },
    footer = {"", "Examples:", "  meteora demo", "  meteora demo --out /tmp/meteora-demo"})
public final class DemoCommand implements Callable<Integer> {
  private final ToIntFunction<String[]> run;
  private final int pipeClosed;

  @Spec private CommandSpec command;

  @Option(
      names = "--out",
      paramLabel = "DIR",
      defaultValue = "demo",
      description = "A new folder for everything (default: demo).")
  private Path out;

  /**
   * @param run a command line of {@code meteora} to its exit code
   * @param pipeClosed the exit code of a command whose reader has gone
   */
  public DemoCommand(ToIntFunction<String[]> run, int pipeClosed) {
    this.run = run;
    this.pipeClosed = pipeClosed;
  }

  @Override
  public Integer call() {
    try {
      new Demo(out, command.commandLine().getOut(), run, Demo.Size.WHOLE).start();
    } catch (Demo.CommandFailed e) {
      if (e.code() == pipeClosed) {
        return e.code(); // nobody reads on: nothing to say
      }
      throw e;
    }
    return 0;
  }
}
