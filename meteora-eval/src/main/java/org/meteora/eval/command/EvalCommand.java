package org.meteora.eval.command;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import org.meteora.UserException;
import org.meteora.checkpoint.LoadedModel;
import org.meteora.data.Sample;
import org.meteora.data.config.ConfigOptions;
import org.meteora.data.config.MeteoraConfig;
import org.meteora.data.config.ProcessOptions;
import org.meteora.data.tasks.Tasks;
import org.meteora.eval.Answer;
import org.meteora.eval.EvalTask;
import org.meteora.eval.Evaluator;
import org.meteora.eval.Scores;
import org.meteora.eval.TextCodec;
import org.meteora.eval.report.SavedAnswers;
import org.meteora.eval.report.SavedResult;
import org.meteora.eval.report.ScoreTable;
import org.meteora.eval.routes.RoutingMatrix;
import org.meteora.eval.sweep.Sweep;
import org.meteora.eval.sweep.SweepReport;
import org.meteora.generate.GenerationConfig;
import org.meteora.io.AtomicFiles;
import org.meteora.io.CacheFolders;
import org.meteora.io.Digests;
import org.meteora.io.Printable;
import org.meteora.moe.RoutingSettings;
import org.meteora.parallel.Collective;
import org.meteora.router.Oracle;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** {@code meteora eval}: answers a task's test prompts and scores the answers. */
@Command(
    name = "eval",
    mixinStandardHelpOptions = true,
    description = {
      "Has a model answer a task's test prompts (<target_dir>/<task>/test.jsonl) and prints the"
          + " scores.",
      "With --save, scores, settings and every answer are written to"
          + " <eval_result_save_dir>/{meteora,peft,base}/."
    },
    footer = {
      "",
      "Examples:",
      "  meteora eval --task composite_10 --batch-size 4 --save",
      "  meteora eval --task strategyqa --model strategyqa --limit 20 --greedy --debug",
      "  meteora eval --task gsm8k --temperature 0.6 --top-p 0.9 --seed 1",
      "  meteora eval --task composite_3 --sweep routing_top_k=1,2,3 --sweep"
          + " routing_temperature=1,4,15",
      "  meteora eval --task all --batch-size 16 --save --processes 8",
      "  meteora eval --rescore eval/results/meteora/composite_10.answers.jsonl"
    })
public final class EvalCommand implements Callable<Integer> {
  private static final Logger LOG = LoggerFactory.getLogger(EvalCommand.class);
  private static final int SHOWN_BY_DEBUG = 10;

  @Spec private CommandSpec command;

  @Mixin private ConfigOptions config;
  @Mixin private ModelOptions model;
  @Mixin private GenerationOptions generation;
  @Mixin private ProcessOptions processes;

  @Option(
      names = "--task",
      paramLabel = "all|A,B,…",
      split = ",",
      description =
          "Of the 28 tasks, composite_3, composite_5, composite_10, and folders of your own in"
              + " --target-dir; several are answered by a model that is loaded once. all: whatever"
              + " has a test.jsonl there.")
  private List<String> tasks;

  @Option(
      names = "--tasks",
      paramLabel = "A,B,…",
      split = ",",
      description = "The tasks of a composite task of your own, whose folder --task names.")
  private List<String> parts;

  @Option(
      names = "--batch-size",
      paramLabel = "N",
      defaultValue = "1",
      description = "Prompts at a time (default: 1).")
  private int batchSize;

  @Option(
      names = "--limit",
      paramLabel = "N",
      description = "The first N samples only (default: all, or the task's cap of 1000).")
  private Integer limit;

  @Option(
      names = "--max-length",
      paramLabel = "N",
      defaultValue = "4096",
      description =
          "Most tokens of prompt and answer; longer prompts are skipped and counted (default:"
              + " 4096, or what the model takes).")
  private int maxLength;

  @Option(names = "--save", description = "Write scores and answers to the result folder.")
  private boolean save;

  @Option(
      names = "--debug",
      description = "Print prompt, output and truth of the first ten samples.")
  private boolean debug;

  @Option(
      names = "--resume",
      description =
          "With --save: keep the answers of an evaluation that was stopped and go on with those"
              + " that are missing.")
  private boolean resume;

  @Option(
      names = "--overwrite",
      description =
          "With --save: replace a result of other settings, or the answers of an evaluation that"
              + " was stopped.")
  private boolean overwrite;

  @Option(
      names = "--sweep",
      paramLabel = "KEY=V1,V2,…",
      description =
          "Evaluate with each value of routing_top_k, routing_temperature or router, the model"
              + " loaded once;"
              + " may be repeated for all combinations. Saves a result each and heat maps in"
              + " <eval_result_save_dir>/sweep/<task>/; started again, it goes on where it"
              + " stopped.")
  private List<String> sweep = List.of();

  @Option(
      names = "--routes",
      description =
          "Gather which adapters the gates choose, tasks x adapters:"
              + " <eval_result_save_dir>/meteora/<task>.routes/routing.{html,png,json}.")
  private boolean routes;

  @Option(
      names = "--rescore",
      paramLabel = "FILE",
      description =
          "Score saved answers again (….answers.jsonl, or the .json beside it); no model is"
              + " needed.")
  private Path rescore;

  @Override
  public Integer call() {
    if (rescore != null) {
      if (tasks != null
          || save
          || debug
          || routes
          || limit != null
          || resume
          || overwrite
          || !sweep.isEmpty()) {
        throw new UserException(
            "--rescore scores saved answers and does nothing else: leave out --task, --save,"
                + " --resume, --overwrite, --sweep, --debug, --routes and --limit");
      }
      var answers = SavedAnswers.read(rescore);
      var name = answers.getFirst().task();
      var scored =
          SavedAnswers.tasks(rescore)
              .filter(saved -> parts == null)
              .map(saved -> EvalTask.saved(name, saved, SavedAnswers.metrics(rescore)))
              .orElseGet(() -> evalTask(name));
      scored.requireParts(answers.stream().map(Answer::truth).toList());
      print(scored.name() + " (saved answers)", Scores.of(scored, answers));
      return 0;
    }
    if (tasks == null) {
      throw new UserException("eval needs --task NAME (or --rescore FILE)");
    }
    if (!sweep.isEmpty()) {
      if (save || resume || debug || routes) {
        throw new UserException(
            "--sweep saves and goes on by itself: leave out --save, --resume, --debug and"
                + " --routes");
      }
      Sweep.of(sweep); // what is wrong with it is said before anything is read
    }
    if (sweep.isEmpty() && (resume || overwrite) && (!save || resume && overwrite)) {
      throw new UserException("--resume or --overwrite, one of them, goes with --save");
    }
    if (resume && routes) {
      throw new UserException("--routes needs all answers generated in one go: leave out --resume");
    }
    check();
    var settings = config.load();
    var evaluated = evaluated(settings);
    var same = new ArrayList<>(command.commandLine().getParseResult().originalArgs());
    evaluated.forEach(
        each -> {
          // what is missing is found out before the first task's work, not before the last one's
          model.spec(settings, each.routingTemperature());
          samples(each, settings.targetDir());
          var file = testFile(each, settings.targetDir());
          same.add(file + " of checksum " + Digests.ofFile(file));
        });
    return processes.run(
        model.device(), same, (all, device) -> evaluateAll(evaluated, settings, all, device));
  }

  private EvalTask evalTask(String name) {
    var targetDir = config.load().targetDir();
    return parts == null
        ? EvalTask.of(name, targetDir)
        : EvalTask.composite(name, parts, targetDir);
  }

  /** The tasks that {@code --task} names, each once. */
  private List<String> names(Path targetDir) {
    if (!tasks.equals(List.of("all"))) {
      return tasks.stream().distinct().toList();
    }
    try (var folders = Files.list(targetDir)) {
      var found =
          folders
              .filter(folder -> Files.isRegularFile(folder.resolve("test.jsonl")))
              .map(folder -> folder.getFileName().toString())
              .sorted()
              .toList();
      if (found.isEmpty()) {
        throw new UserException("--task all: no folder in " + targetDir + " has a test.jsonl");
      }
      return found;
    } catch (IOException e) {
      throw new UserException("cannot read " + targetDir + ": " + AtomicFiles.reason(e), e);
    }
  }

  private List<EvalTask> evaluated(MeteoraConfig settings) {
    var evaluated = names(settings.targetDir()).stream().map(this::evalTask).toList();
    if (parts != null && evaluated.size() > 1) {
      throw new UserException("--tasks says what one composite task is made of: name one --task");
    }
    return evaluated;
  }

  /** One task after another; the model is loaded again only where it is to be another. */
  private int evaluateAll(
      List<EvalTask> evaluated, MeteoraConfig settings, Collective all, String device) {
    if (!sweep.isEmpty() && all.size() > 1) {
      throw new UserException("--sweep is the work of one process: leave out --processes");
    }
    try (var models = new Models()) {
      int code = 0;
      for (var each : evaluated) {
        code =
            Math.max(
                code,
                sweep.isEmpty()
                    ? evaluate(each, settings, models, all, device)
                    : sweep(Sweep.of(sweep), each, settings));
      }
      return code;
    }
  }

  /** The model that was loaded last. */
  private static final class Models implements AutoCloseable {
    private LoadedModel.Spec spec;
    private LoadedModel model;

    LoadedModel load(LoadedModel.Spec wanted) {
      if (!wanted.equals(spec)) {
        close();
        model = LoadedModel.load(wanted);
        spec = wanted;
      }
      return model;
    }

    @Override
    public void close() {
      if (model != null) {
        spec = null;
        model.close();
        model = null;
      }
    }
  }

  private int evaluate(
      EvalTask evaluated, MeteoraConfig settings, Models models, Collective all, String device) {
    boolean first = all.rank() == 0;
    var spec = model.spec(settings, evaluated.routingTemperature(), device);
    var samples = samples(evaluated, settings.targetDir());
    var routesFolder =
        settings.evalResultSaveDir().resolve("meteora").resolve(evaluated.name() + ".routes");
    if (routes) {
      if (!model.model().equals("meteora")) {
        throw new UserException("--routes needs a model with gates: --model meteora");
      }
      if (spec.flags().singleAdapter().isPresent()) {
        throw new UserException("--routes needs gates, and MOELINEAR_SINGLE_MOE_LORA is set");
      }
      if (first) {
        AtomicFiles.requireWritableFolder(routesFolder);
      }
    }
    generation.check(spec.basePath());
    // a folder that cannot be written to is found out before the work, not after it
    try (var result =
        save && first
            ? new SavedResult(settings.evalResultSaveDir(), model.model(), evaluated.name())
            : null) {
      var loaded = models.load(spec);
      var chosen = chosen(loaded);
      var generator =
          loaded.generator().withRouting(of(evaluated, loaded.generator().context().routing()));
      var evaluator =
          new Evaluator(generator, TextCodec.of(loaded.tokenizer()), chosen, batchSize)
              .dealtTo(all);
      var matrix = new RoutingMatrix(loaded.adapterNames());
      if (routes) {
        evaluator =
            evaluator.observedBy(
                matrix.observer(
                    evaluated.name(),
                    evaluated.parts(),
                    ids -> loaded.tokenizer().decode(ids, false)),
                generator::listenedBy);
      }
      var described = describe(evaluated, settings, chosen);
      Evaluator.Run run;
      Map<String, Object> modelDescribed = save && first ? loaded.describe() : Map.of();
      if (save && first) {
        var there = result.begin(described, modelDescribed, existing());
        if (!there.isEmpty()) {
          LOG.info("{} answers are there already", there.size());
        }
        run = evaluator.run(evaluated.name(), samples, there, result::add);
      } else {
        run = evaluator.run(evaluated.name(), samples);
      }
      if (routes) {
        matrix.addOthers(all);
      }
      if (!first) {
        return 0;
      }
      if (debug) {
        run.answers().stream().limit(SHOWN_BY_DEBUG).forEach(EvalCommand::show);
      }
      var scores = Scores.of(evaluated, run.answers());
      LOG.info(
          "{} answers in {} s: {} tokens/s",
          run.throughput().samples(),
          Math.round(run.throughput().seconds()),
          Math.round(run.throughput().newTokensPerSecond()));
      boolean complete = run.throughput().samples() == 0 && resume && Files.exists(result.file());
      if (save && !complete) { // before printing: what was worked for is safe, read or not
        result.write(
            command.commandLine().getParseResult().originalArgs(),
            described,
            () -> modelDescribed,
            run,
            scores);
        LOG.info("saved {} and {}", result.file(), result.answersFile());
      }
      if (routes) {
        var how = new LinkedHashMap<>(described);
        how.put("model", loaded.describe());
        matrix.write("Routing of " + evaluated.name(), how, routesFolder);
        LOG.info("wrote the routing to {}", routesFolder);
      }
      print(evaluated.name() + " (" + model.model() + ")", scores);
      return report(run.problems(), testFile(evaluated, settings.targetDir()));
    }
  }

  private void check() {
    atLeast("--limit", limit == null ? 1 : limit, 1);
    atLeast("--batch-size", batchSize, 1);
    atLeast("--max-length", maxLength, 1);
    generation.check();
  }

  /** A task's routing: the oracle is told which task it is. */
  private static RoutingSettings of(EvalTask evaluated, RoutingSettings routing) {
    if (!(routing.router() instanceof Oracle oracle)) {
      return routing;
    }
    if (!evaluated.parts().isEmpty()) {
      throw new UserException(
          "--router oracle knows one task's adapter, and "
              + evaluated.name()
              + " is made of several tasks");
    }
    return routing.withRouter(oracle.of(evaluated.name()));
  }

  private GenerationConfig chosen(LoadedModel loaded) {
    return generation
        .apply(loaded.generationConfig())
        .withMaxLength(maxLength(loaded.llama().config().maxPositionEmbeddings()));
  }

  /** One evaluation a point, all with the model loaded once; those that are there are kept. */
  private int sweep(Sweep points, EvalTask evaluated, MeteoraConfig settings) {
    if (!model.model().equals("meteora")) {
      throw new UserException("--sweep varies the routing, which needs --model meteora");
    }
    var spec = model.spec(settings, evaluated.routingTemperature());
    var samples = samples(evaluated, settings.targetDir());
    var folder = settings.evalResultSaveDir().resolve("sweep").resolve(evaluated.name());
    AtomicFiles.requireWritableFolder(folder);
    generation.check(spec.basePath());
    var report = new SweepReport(evaluated.name(), points);
    int code = 0;
    try (var loaded = LoadedModel.load(spec)) {
      var chosen = chosen(loaded);
      var described = describe(evaluated, settings, chosen);
      var unvaried = loaded.describe(); // reads the weights, for their hashes
      var given = loaded.generator().context().routing();
      // what a router refuses is said before the first point's work
      points.points().forEach(each -> of(evaluated, each.routing(given, loaded::router)));
      for (var point : points.points()) {
        var routing = of(evaluated, point.routing(given, loaded::router));
        var evaluator =
            new Evaluator(
                loaded.generator().withRouting(routing),
                TextCodec.of(loaded.tokenizer()),
                chosen,
                batchSize);
        var modelDescribed = new LinkedHashMap<>(unvaried);
        modelDescribed.put("routing_top_k", Math.min(routing.topK(), loaded.adapterNames().size()));
        modelDescribed.put("routing_temperature", routing.temperature());
        modelDescribed.put("router", routing.router().name());
        try (var result =
            new SavedResult(folder.resolve(point.name()), "meteora", evaluated.name())) {
          var there =
              result.begin(
                  described,
                  modelDescribed,
                  overwrite ? SavedResult.Existing.OVERWRITE : SavedResult.Existing.RESUME);
          LOG.info("{}: {} of {} answers are there", point.name(), there.size(), samples.size());
          var run = evaluator.run(evaluated.name(), samples, there, result::add);
          var scores = Scores.of(evaluated, run.answers());
          if (run.throughput().samples() > 0 || !Files.exists(result.file())) {
            result.write(
                command.commandLine().getParseResult().originalArgs(),
                described,
                () -> modelDescribed,
                run,
                scores);
          }
          report.add(point, evaluated, run.answers(), scores);
          code = Math.max(code, report(run.problems(), testFile(evaluated, settings.targetDir())));
        }
      }
    }
    var page = folder.resolve("sweep.html");
    AtomicFiles.writeString(page, report.html());
    var out = command.commandLine().getOut();
    out.print(report.table());
    out.println("Heat maps: " + page + "; compare the results with: meteora compare " + folder);
    out.flush();
    return code;
  }

  private SavedResult.Existing existing() {
    return resume
        ? SavedResult.Existing.RESUME
        : overwrite ? SavedResult.Existing.OVERWRITE : SavedResult.Existing.KEEP_OTHERS;
  }

  /** Names the samples that could not be answered; 1 when there are any. */
  private static int report(Map<Integer, String> problems, Path file) {
    if (problems.isEmpty()) {
      return 0;
    }
    problems.forEach(
        (index, problem) -> LOG.error("{}: {}: skipped", Sample.where(file, index), problem));
    LOG.error(
        "{} of the samples could not be answered; the scores are those of the others",
        problems.size());
    return 1;
  }

  private static void atLeast(String option, int value, int least) {
    if (value < least) {
      throw new UserException(option + " must be at least " + least + ", not " + value);
    }
  }

  private List<Sample> samples(EvalTask evaluated, Path targetDir) {
    var file = testFile(evaluated, targetDir);
    if (!Files.isRegularFile(file)) {
      throw new UserException(
          "no test data for "
              + evaluated.name()
              + ": there is no "
              + file
              + "; make it with \"meteora "
              + (evaluated.parts().isEmpty() ? "create-dataset" : "create-composite")
              + "\", or name the folder of datasets by --target-dir");
    }
    var samples = Sample.read(file);
    evaluated.requireParts(samples.stream().map(Sample::response).toList());
    int most = Math.min(limit == null ? samples.size() : limit, samples.size());
    most = Math.min(most, evaluated.limit().orElse(most));
    return samples.subList(0, most);
  }

  private static Path testFile(EvalTask evaluated, Path targetDir) {
    return targetDir.resolve(evaluated.name()).resolve("test.jsonl");
  }

  private int maxLength(int positions) {
    if (maxLength > positions) {
      LOG.info("the model takes {} tokens: that is the limit, not {}", positions, maxLength);
    }
    return Math.min(maxLength, positions);
  }

  private static void show(Answer answer) {
    System.err.printf(
        "--- sample %d%nprompt: %s%noutput: %s%ntruth:  %s%n",
        answer.index(),
        Printable.text(answer.prompt()),
        answer.skipped() ? "(skipped)" : Printable.text(answer.answer()),
        Printable.text(answer.truth()));
  }

  private void print(String title, Scores scores) {
    var out = command.commandLine().getOut();
    out.print(ScoreTable.of(title, scores));
    out.flush();
  }

  private Map<String, Object> describe(
      EvalTask evaluated, MeteoraConfig settings, GenerationConfig chosen) {
    var all = new LinkedHashMap<String, Object>();
    var file = testFile(evaluated, settings.targetDir());
    all.put("test_file", CacheFolders.shown(file));
    all.put("test_sha256", Digests.ofFile(file));
    all.put("tasks", evaluated.parts());
    var own = new LinkedHashMap<>(evaluated.metrics());
    own.keySet().removeAll(Tasks.names());
    if (!own.isEmpty()) {
      all.put("metrics", own);
    }
    all.put("batch_size", batchSize);
    all.put("limit", limit);
    all.put("max_length", chosen.maxLength());
    all.put("no_repeat_ngram_size", chosen.noRepeatNgramSize());
    all.put("do_sample", chosen.sample());
    all.put("temperature", chosen.sample() ? chosen.temperature() : null);
    all.put("top_p", chosen.sample() ? chosen.topP() : null);
    all.put("top_k", chosen.sample() ? chosen.topK() : null);
    all.put("seed", chosen.sample() ? chosen.seed() : null);
    all.put("eos_token_ids", chosen.eosTokenIds());
    all.put("pad_token_id", chosen.padTokenId());
    return all;
  }
}
