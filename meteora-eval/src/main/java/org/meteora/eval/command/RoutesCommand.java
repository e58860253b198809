package org.meteora.eval.command;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import org.meteora.UserException;
import org.meteora.checkpoint.LoadedModel;
import org.meteora.data.composite.CompositeTask;
import org.meteora.data.config.ConfigOptions;
import org.meteora.eval.routes.Part;
import org.meteora.eval.routes.Routes;
import org.meteora.eval.routes.RoutingTrace;
import org.meteora.generate.GenerationConfig;
import org.meteora.io.AtomicFiles;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** {@code meteora routes}: shows which adapter acts on which token. */
@Command(
    name = "routes",
    customSynopsis = "(--prompt TEXT | --task NAME)",
    mixinStandardHelpOptions = true,
    description = {
      "Answers one prompt and shows which adapter acts on which token: routes.html, routes.png,"
          + " routes.json and routes.csv in the folder --out.",
    },
    footer = {
      "",
      "Examples:",
      "  meteora routes --prompt '[INST] How many apples are three and four? [/INST]' --greedy",
      "  meteora routes --task composite_3 --sample 0 --out routes/composite_3"
    })
public final class RoutesCommand implements Callable<Integer> {
  @Spec private CommandSpec command;

  @Mixin private ConfigOptions config;
  @Mixin private ModelOptions model;
  @Mixin private GenerationOptions generation;
  @Mixin private MaxNewTokensOption maxNewTokens;

  @Option(names = "--prompt", paramLabel = "TEXT", description = "The prompt, taken as it is.")
  private String prompt;

  @Option(
      names = "--task",
      paramLabel = "NAME",
      description = "Take the prompt from <target_dir>/NAME/test.jsonl instead.")
  private String task;

  @Option(
      names = "--sample",
      paramLabel = "I",
      description = "Which sample of the task, from 0 (default: 0).")
  private Integer sample;

  @Option(
      names = "--out",
      paramLabel = "DIR",
      defaultValue = "routes",
      description = "Where the reports go (default: routes).")
  private Path out;

  @Override
  public Integer call() {
    check();
    var settings = config.load();
    double temperature =
        task == null
            ? 1
            : CompositeTask.find(task, settings.targetDir())
                .map(composite -> CompositeTask.routingTemperature(composite.tasks().size()))
                .orElse(1.0);
    var spec = model.spec(settings, temperature);
    int index = sample == null ? 0 : sample;
    var text = task == null ? prompt : Routes.prompt(settings.targetDir(), task, index);
    AtomicFiles.requireWritableFolder(out);
    generation.check(spec.basePath());
    try (var loaded = LoadedModel.load(spec)) {
      var chosen =
          generation.apply(loaded.generationConfig()).withMaxNewTokens(maxNewTokens.orDefault());
      var trace =
          Routes.run(
              loaded.generator(),
              loaded.tokenizer(),
              loaded.adapterNames(),
              text,
              chosen,
              tokens ->
                  task == null ? List.<Part>of() : Routes.parts(settings.targetDir(), task, tokens),
              describe(loaded, chosen, index));
      Routes.write(trace, task == null ? "Routing of a prompt" : task + ", sample " + index, out);
      print(trace);
    }
    return 0;
  }

  private void check() {
    if ((prompt == null) == (task == null)) {
      throw new UserException("routes needs either --prompt TEXT or --task NAME");
    }
    if (sample != null && task == null) {
      throw new UserException("--sample goes with --task");
    }
    if (!model.model().equals("meteora")) {
      throw new UserException(
          "only a MeteoRA model has gates: --model must be meteora, not " + model.model());
    }
    maxNewTokens.value();
    generation.check();
  }

  private Map<String, Object> describe(LoadedModel loaded, GenerationConfig chosen, int index) {
    var all = new LinkedHashMap<String, Object>();
    if (task != null) {
      all.put("task", task);
      all.put("sample", index);
    }
    all.put("model", loaded.describe());
    all.put("max_new_tokens", chosen.maxNewTokens());
    all.put("no_repeat_ngram_size", chosen.noRepeatNgramSize());
    all.put("do_sample", chosen.sample());
    if (chosen.sample()) {
      all.put("temperature", chosen.temperature());
      all.put("top_p", chosen.topP());
      all.put("top_k", chosen.topK());
      all.put("seed", chosen.seed());
    }
    return all;
  }

  private void print(RoutingTrace trace) {
    var to = command.commandLine().getOut();
    for (var verdict : trace.verdicts()) {
      to.printf(
          "%-17s %-44s %-44s %5.1f %% %s%n",
          (verdict.part().output() ? "written " : "") + verdict.part().label(),
          verdict.part().task(),
          verdict.dominant() < 0 ? "(no routing)" : trace.adapters().get(verdict.dominant()),
          100 * verdict.expectedShare(),
          verdict.expected() < 0 ? "no such adapter" : verdict.right() ? "right" : "other");
    }
    for (var name : List.of("html", "png", "json", "csv")) {
      var file = out.resolve("routes." + name);
      if (Files.exists(file)) {
        to.println(file);
      }
    }
    to.flush();
  }
}
