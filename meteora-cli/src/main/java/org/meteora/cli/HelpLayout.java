package org.meteora.cli;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
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
  private static final String OUTPUT = "Output";
  private static final String RARE = "Which implementation runs (rarely needed)";

  /** The headings, in their order, of options that commands share, by the mixin that has them. */
  private static final Map<Class<?>, String> SHARED = new LinkedHashMap<>();

  static {
    SHARED.put(TrainingOptions.class, "Training (keys of train: in config.yaml)");
    SHARED.put(ModelOptions.class, "Model and device");
    SHARED.put(DeviceOptions.class, "Model and device");
    SHARED.put(ProcessOptions.class, "Model and device");
    SHARED.put(ShardBaseOption.class, "Model and device");
    SHARED.put(RoutingTopKOption.class, "Routing");
    SHARED.put(GenerationOptions.class, "Sampling");
    SHARED.put(ConfigOptions.class, "Settings and folders (keys of config.yaml)");
    SHARED.put(FlagOptions.class, RARE);
  }

  private static final Set<String> ROUTING =
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
            "("
                + String.join(
                    " | ",
                    group.options().stream()
                        .map(option -> option.longestName() + " " + option.paramLabel())
                        .toList())
                + ")");
      }
    }
    spec.positionalParameters()
        .forEach(
            positional ->
                parts.add(positional.paramLabel() + (positional.arity().max() > 1 ? "…" : "")));
    parts.add("[OPTIONS]");
    if (!spec.subcommands().isEmpty()) {
      parts.add("COMMAND");
    }
    return String.join(" ", parts) + System.lineSeparator();
  }

  private static String options(Help help) {
    var groups = new LinkedHashMap<String, List<OptionSpec>>();
    groups.put(OWN, new ArrayList<>());
    SHARED.values().forEach(heading -> groups.putIfAbsent(heading, new ArrayList<>()));
    var output = new ArrayList<OptionSpec>();
    for (var option : help.commandSpec().options()) {
      if (!option.hidden()) {
        var heading = heading(help.commandSpec(), option.longestName());
        (heading.equals(OUTPUT) ? output : groups.get(heading)).add(option);
      }
    }
    groups.get(OWN).sort(Comparator.comparing(option -> isMixedIn(help.commandSpec(), option)));
    var text = new StringBuilder();
    groups.forEach(
        (heading, options) -> {
          if (heading.equals("Settings and folders (keys of config.yaml)")) {
            section(text, help, OUTPUT, output);
          }
          section(text, help, heading, options);
        });
    return text.toString();
  }

  private static void section(
      StringBuilder text, Help help, String heading, List<OptionSpec> options) {
    if (options.isEmpty()) {
      return;
    }
    var layout = help.createDefaultLayout(options, List.of(), help.colorScheme());
    layout.addOptions(options, new Labels());
    text.append(String.format("%n%s:%n", heading)).append(layout);
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
    return ROUTING.contains(option)
        ? SHARED.get(RoutingTopKOption.class)
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
