package org.meteora.cli;

import picocli.AutoComplete;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Spec;

/** {@code meteora completion}: what bash and zsh need to complete commands and options. */
@Command(
    name = "completion",
    description = "Prints the script with which bash or zsh completes commands and options.",
    footer = {
      "",
      "Example, a line for ~/.bashrc or ~/.zshrc:",
      "  source <(meteora completion)",
      "or, for a shell that starts at once, write the script to a file and source that."
    })
final class CompletionCommand implements Runnable {
  @Spec private CommandSpec command;

  @Override
  public void run() {
    var out = command.commandLine().getOut();
    out.print(AutoComplete.bash("meteora", command.root().commandLine()));
    out.flush();
  }
}
