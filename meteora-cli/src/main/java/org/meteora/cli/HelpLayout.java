package org.meteora.cli;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.stream.Collectors;
import org.meteora.data.config.ConfigOptions;
import org.meteora.data.config.DeviceOptions;
import org.meteora.data.config.FlagOptions;
import org.meteora.data.config.ProcessOptions;
import org.meteora.data.config.RoutingTopKOption;
import org.meteora.data.config.ShardBaseOption;
import org.meteora.eval.command.GenerationOptions;
import org.meteora.eval.command.ModelOptions;
import org.meteora.train.command.TrainingOptions;
import picocli.CommandLine;
import picocli.CommandLine.Help;
import picocli.CommandLine.Model.ArgSpec;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Model.OptionSpec;
import picocli.CommandLine.Model.UsageMessageSpec;

/**
 * The help texts' form: a synopsis of what a command needs, and its options under headings, its own
 * first, those it shares with others by their subject, the rarely used last.
 */
final class HelpLayout {
  private static final String OWN = "Options";
  private static final String TRAINING = "Training (keys of train: in config.yaml)";
  private static final String MODEL = "Model and device";
  private static final String ROUTING = "Routing";
  private static final String SAMPLING = "Sampling";
  private static final String OUTPUT = "Output";
  private static final String SETTINGS = "Settings and folders (keys of config.yaml)";
  private static final String RARE = "Which implementation runs (rarely needed)";

  private static final List<String> HEADINGS =
      List.of(OWN, TRAINING, MODEL, ROUTING, SAMPLING, OUTPUT, SETTINGS, RARE);

  /** The headings of options that commands share, by the mixin that has them. */
  private static final Map<Class<?>, String> SHARED =
      Map.of(
          TrainingOptions.class, TRAINING,
          ModelOptions.class, MODEL,
          DeviceOptions.class, MODEL,
          ProcessOptions.class, MODEL,
          ShardBaseOption.class, MODEL,
          RoutingTopKOption.class, ROUTING,
          GenerationOptions.class, SAMPLING,
          ConfigOptions.class, SETTINGS,
          FlagOptions.class, RARE);

  private static final Set<String> OF_ROUTING =
      Set.of("--router", "--routing-temperature", "--routing-top-k");

  /** Options of any command that say what is kept or shown. */
  private static final Set<String> OUTPUTS =
      Set.of(
          "--save",
          "--resume",
          "--overwrite",
          "--routes",
          "--debug",
          "--json",
          "--out",
          "--samples");

  private HelpLayout() {}

  /** Gives a command line and all below it this form. */
  static void apply(CommandLine line) {
    line.getHelpSectionMap().put(UsageMessageSpec.SECTION_KEY_SYNOPSIS, HelpLayout::synopsis);
    line.getHelpSectionMap().put(UsageMessageSpec.SECTION_KEY_OPTION_LIST, HelpLayout::options);
    line.getSubcommands().values().forEach(HelpLayout::apply);
  }

  /** What must be given, which a command may name itself; the options in one word. */
  private static String synopsis(Help help) {
    var spec = help.commandSpec();
    var parts = new ArrayList<>(List.of(spec.qualifiedName()));
    parts.addAll(List.of(spec.usageMessage().customSynopsis()));
    for (var option : spec.options()) {
      if (option.required() && option.group() == null) {
        parts.add(option.longestName() + " " + option.paramLabel());
      }
    }
    for (var group : spec.argGroups()) {
      if (group.multiplicity().min() > 0) {
        parts.add(
            group.options().stream()
                .map(option -> option.longestName() + " " + option.paramLabel())
                .collect(Collectors.joining(" | ", "(", ")")));
      }
    }
    for (var each : spec.positionalParameters()) {
      parts.add(each.paramLabel() + (each.arity().max() > 1 ? "…" : ""));
    }
    parts.add("[OPTIONS]");
    if (!spec.subcommands().isEmpty()) {
      parts.add("COMMAND");
    }
    return String.join(" ", parts) + System.lineSeparator();
  }

  private static String options(Help help) {
    var command = help.commandSpec();
    var groups =
        command.options().stream()
            .filter(option -> !option.hidden())
            .collect(Collectors.groupingBy(option -> heading(command, option.longestName())));
    groups.get(OWN).sort(Comparator.comparing(option -> isMixedIn(command, option)));
    var text = new StringBuilder();
    for (var heading : HEADINGS) {
      if (groups.containsKey(heading)) {
        var layout = help.createDefaultLayout(groups.get(heading), List.of(), help.colorScheme());
        layout.addOptions(groups.get(heading), new Labels());
        text.append(String.format("%n%s:%n", heading)).append(layout);
      }
    }
    return text.toString();
  }

  /** {@code =LABEL}, without picocli's syntax for what may be left out or repeated. */
  private static final class Labels implements Help.IParamLabelRenderer {
    @Override
    public Help.Ansi.Text renderParameterLabel(
        ArgSpec argument, Help.Ansi ansi, List<Help.Ansi.IStyle> styles) {
      var label = argument.arity().min() == 0 ? "" : separator() + argument.paramLabel();
      return ansi.new Text(label);
    }

    @Override
    public String separator() {
      return "=";
    }
  }

  private static String heading(CommandSpec command, String option) {
    return OF_ROUTING.contains(option)
        ? ROUTING
        : OUTPUTS.contains(option) ? OUTPUT : shared(command, option).orElse(OWN);
  }

  private static boolean isMixedIn(CommandSpec command, OptionSpec option) {
    return command.mixins().values().stream()
        .anyMatch(mixin -> mixin.findOption(option.longestName()) != null);
  }

  /** The heading of the mixin that has the option; of one within another, its own goes first. */
  private static Optional<String> shared(CommandSpec command, String option) {
    return command.mixins().values().stream()
        .filter(mixin -> mixin.findOption(option) != null)
        .findFirst()
        .flatMap(
            mixin ->
                shared(mixin, option)
                    .or(() -> Optional.ofNullable(SHARED.get(mixin.userObject().getClass()))));
  }
}
