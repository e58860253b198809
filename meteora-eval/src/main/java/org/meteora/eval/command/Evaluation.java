package org.meteora.eval.command;

import static org.meteora.eval.report.SavedResult.Existing.KEEP_OTHERS;
import static org.meteora.eval.report.SavedResult.Existing.RESUME;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.meteora.UserException;
import org.meteora.checkpoint.LoadedModel;
import org.meteora.data.Sample;
import org.meteora.data.config.MeteoraConfig;
import org.meteora.eval.Answer;
import org.meteora.eval.EvalTask;
import org.meteora.eval.Evaluator;
import org.meteora.eval.Scores;
import org.meteora.eval.TextCodec;
import org.meteora.eval.report.SavedResult;
import org.meteora.eval.report.ScoreTable;
import org.meteora.eval.routes.CompositeOracle;
import org.meteora.eval.routes.RoutingMatrix;
import org.meteora.eval.sweep.Sweep;
import org.meteora.eval.sweep.SweepReport;
import org.meteora.generate.GenerationConfig;
import org.meteora.generate.Generator;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Printable;
import org.meteora.moe.RoutingSettings;
import org.meteora.parallel.Collective;
import org.meteora.parallel.ShardedWeights;
import org.meteora.router.Oracle;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Evaluates tasks one after another, prints their scores and keeps what is asked for. The model is
 * loaded again only where a task wants another.
 */
final class Evaluation implements AutoCloseable {
  private static final Logger LOG = LoggerFactory.getLogger(Evaluation.class);

  /** Prompts that are too long may be most of a task: so many are named one by one. */
  private static final int MOST_NAMED = 10;

  private static final int SHOWN_BY_DEBUG = 10;

  private final EvalCommand asked;
  private final MeteoraConfig config;
  private final Collective all;
  private final Collective sharers;
  private final String device;
  private LoadedModel loaded;
  private RoutingMatrix routesOfAll;

  /**
   * @param asked options of the command
   * @param all the processes that share the work; the first prints and writes
   * @param sharers those of them that share the base model's weights: all, or one process
   */
  Evaluation(
      EvalCommand asked, MeteoraConfig config, Collective all, Collective sharers, String device) {
    this.asked = asked;
    this.config = config;
    this.all = all;
    this.sharers = sharers;
    this.device = device;
  }

  /**
   * Has the model answer a task's test samples.
   *
   * @return the exit code: 1 when samples could not be answered
   * @throws UserException when something is missing or does not fit, before the work where possible
   */
  int evaluate(EvalTask task) {
    boolean first = all.rank() == 0;
    boolean save = asked.save && first;
    var wanted = asked.model.spec(config, task.routingTemperature(), device);
    var test = TestSet.read(task, config.targetDir(), asked.limit);
    var results = config.evalResultSaveDir();
    var routesFolder = results.resolve("meteora").resolve(task.name() + ".routes");
    if (asked.routes) {
      requireGates(wanted);
      if (first) {
        AtomicFiles.requireWritableFolder(routesFolder);
      }
    }
    asked.generation.check(wanted.basePath());
    // a folder that cannot be written to is found out before the work, not after it
    try (var result = save ? new SavedResult(results, asked.model.model(), task.name()) : null) {
      load(wanted);
      var processes = ShardedWeights.meeting(loaded.llama().frozen(), all);
      var chosen = chosen();
      var context = loaded.generator().context();
      var routed = temperature(wanted, context.routing());
      var generator = generator(routing(task, routed));
      var evaluator =
          new Evaluator(generator, TextCodec.of(loaded.tokenizer()), chosen, asked.batchSize)
              .dealtTo(processes);
      var matrix = new RoutingMatrix(loaded.adapterNames());
      if (asked.routes) {
        evaluator =
            evaluator.listenedBy(
                prompt -> matrix.listener(task.name(), task.parts(), prompt, this::textOf));
      }
      var described = asked.describe(test, chosen);
      Map<String, Object> modelDescribed = save ? loaded.describe(routed) : Map.of();
      var there =
          save ? result.begin(described, modelDescribed, asked.existing()) : List.<Answer>of();
      if (!there.isEmpty()) {
        LOG.info("{} answers are there already", there.size());
      }
      var run =
          evaluator.run(task.name(), test.samples(), there, save ? result::add : answers -> {});
      if (asked.routes) {
        matrix.addOthers(processes);
      }
      if (!first) {
        return 0;
      }
      if (asked.checkBatching > 0) {
        run = checked(run, generator, chosen, task, test);
      }
      if (asked.debug) {
        run.answers().stream().limit(SHOWN_BY_DEBUG).forEach(Evaluation::show);
      }
      var scores = Scores.of(task, run.answers());
      var throughput = run.throughput();
      LOG.info(
          "{} answers in {} s: {} tokens/s",
          throughput.samples(),
          Math.round(throughput.seconds()),
          Math.round(throughput.newTokensPerSecond()));
      boolean complete =
          throughput.samples() == 0 && asked.existing() == RESUME && Files.exists(result.file());
      if (save && !complete) { // before printing: what was worked for is safe, read or not
        result.write(asked.arguments(), described, modelDescribed, run, scores);
        LOG.info("saved {} and {}", result.file(), result.answersFile());
      }
      if (asked.routes) {
        described.put("model", loaded.describe(routed));
        matrix.write("Routing of " + task.name(), described, routesFolder);
        LOG.info("wrote the routing to {}", routesFolder);
        if (routesOfAll == null) {
          routesOfAll = new RoutingMatrix(matrix.adapters());
        }
        routesOfAll.add(matrix);
      }
      asked.out().print(ScoreTable.of(task.name() + " (" + asked.model.model() + ")", scores));
      asked.out().flush();
      return exitCode(run, test.file());
    }
  }

  /** Answers the first samples once more, each alone, and counts those that differ. */
  private Evaluator.Run checked(
      Evaluator.Run run,
      Generator generator,
      GenerationConfig chosen,
      EvalTask task,
      TestSet test) {
    var some = test.samples().subList(0, Math.min(asked.checkBatching, test.samples().size()));
    var alone =
        new Evaluator(generator.withoutPrefixes(), TextCodec.of(loaded.tokenizer()), chosen, 1)
            .run(task.name() + ", one by one", some);
    var result = run.comparedWith(alone);
    var batching = result.batching().orElseThrow();
    LOG.info(
        "{} of {} answers differ from those with --batch-size 1 --no-prefix-cache",
        batching.different(),
        batching.checked());
    return result;
  }

  /** Writes one routing matrix of all tasks evaluated, if they were several. */
  void writeRoutesOfAll() {
    if (routesOfAll != null && routesOfAll.tasks().size() > 1) {
      var folder = config.evalResultSaveDir().resolve("meteora").resolve("tasks.routes");
      var settings = new LinkedHashMap<String, Object>();
      settings.put("model", loaded.describe());
      settings.put("limit", asked.limit == null ? "all" : asked.limit.toString());
      routesOfAll.write("Routing by task", settings, folder);
      LOG.info("wrote the routing of all tasks to {}", folder);
    }
  }

  /**
   * One evaluation a point, all with the model loaded once; those that are there are kept.
   *
   * @return as {@link #evaluate}
   */
  int sweep(Sweep points, EvalTask task) {
    if (!asked.model.model().equals("meteora")) {
      throw new UserException("--sweep varies the routing, which needs --model meteora");
    }
    var wanted = asked.model.spec(config, task.routingTemperature(), device);
    var test = TestSet.read(task, config.targetDir(), asked.limit);
    var folder = config.evalResultSaveDir().resolve("sweep").resolve(task.name());
    AtomicFiles.requireWritableFolder(folder);
    asked.generation.check(wanted.basePath());
    load(wanted);
    var chosen = chosen();
    var described = asked.describe(test, chosen);
    var given = temperature(wanted, loaded.generator().context().routing());
    // what a router refuses is said before the first point's work
    points.points().forEach(each -> routing(task, each.routing(given, loaded::router)));
    var report = new SweepReport(task.name(), points);
    int code = 0;
    for (var point : points.points()) {
      var routing = routing(task, point.routing(given, loaded::router));
      var evaluator =
          new Evaluator(
              generator(routing), TextCodec.of(loaded.tokenizer()), chosen, asked.batchSize);
      var modelDescribed = loaded.describe(routing);
      var existing = asked.existing();
      try (var result = new SavedResult(folder.resolve(point.name()), "meteora", task.name())) {
        var there =
            result.begin(described, modelDescribed, existing == KEEP_OTHERS ? RESUME : existing);
        LOG.info(
            "{}: {} of {} answers are there", point.name(), there.size(), test.samples().size());
        var run = evaluator.run(task.name(), test.samples(), there, result::add);
        var scores = Scores.of(task, run.answers());
        if (run.throughput().samples() > 0 || !Files.exists(result.file())) {
          result.write(asked.arguments(), described, modelDescribed, run, scores);
        }
        report.add(point, task, run.answers(), scores);
        code = Math.max(code, exitCode(run, test.file()));
      }
    }
    var page = folder.resolve("sweep.html");
    AtomicFiles.writeString(page, report.html());
    var out = asked.out();
    out.print(report.table());
    out.println("Heat maps: " + page + "; compare the results with: meteora compare " + folder);
    out.flush();
    return code;
  }

  private Generator generator(RoutingSettings routing) {
    var generator = loaded.generator().withRouting(routing);
    return asked.noPrefixCache ? generator.withoutPrefixes() : generator;
  }

  /** The model stays where only the temperature is another. */
  private void load(LoadedModel.Spec wanted) {
    if (loaded == null || !wanted.at(1).equals(loaded.spec().at(1))) {
      close();
      loaded =
          LoadedModel.load(wanted, sharers, new LoadedModel.Room(asked.batchSize, asked.maxLength));
    }
  }

  private static RoutingSettings temperature(LoadedModel.Spec wanted, RoutingSettings routing) {
    return wanted.temperature().map(routing::withTemperature).orElse(routing);
  }

  private void requireGates(LoadedModel.Spec wanted) {
    if (!asked.model.model().equals("meteora")) {
      throw new UserException("--routes needs a model with gates: --model meteora");
    }
    if (wanted.flags().singleAdapter().isPresent()) {
      throw new UserException("--routes needs gates, and MOELINEAR_SINGLE_MOE_LORA is set");
    }
  }

  /** A task's routing: the oracle is told which task it is, or which are its parts. */
  private RoutingSettings routing(EvalTask task, RoutingSettings routing) {
    if (!(routing.router() instanceof Oracle oracle)) {
      return routing;
    }
    return routing.withRouter(
        task.parts().isEmpty()
            ? oracle.of(task.name())
            : new CompositeOracle(oracle, task.parts(), this::textOf));
  }

  private String textOf(int[] ids) {
    return loaded.tokenizer().decode(ids, false);
  }

  private GenerationConfig chosen() {
    int positions = loaded.llama().config().maxPositionEmbeddings();
    int most = asked.maxLength;
    if (most > positions) {
      LOG.info("the model takes {} tokens: that is the limit, not {}", positions, most);
    }
    var limited = loaded.generationConfig().withMaxLength(Math.min(most, positions));
    var chosen = asked.generation.apply(limited);
    return asked.maxNewTokens.value().map(chosen::withMaxNewTokens).orElse(chosen);
  }

  /** Names the samples that were skipped; 1 when some could not be answered. */
  private static int exitCode(Evaluator.Run run, Path file) {
    var problems = run.problems();
    var tooLong =
        run.answers().stream()
            .filter(answer -> answer.skipped() && !problems.containsKey(answer.index()))
            .toList();
    if (problems.isEmpty() && tooLong.isEmpty()) {
      return 0;
    }
    var lines = Sample.lines(file);
    for (var answer : tooLong.subList(0, Math.min(MOST_NAMED, tooLong.size()))) {
      LOG.info(
          "{}:{}: the prompt has {} tokens, too many: skipped",
          file,
          lines.get(answer.index()),
          answer.promptTokens());
    }
    if (tooLong.size() > MOST_NAMED) {
      LOG.info("and {} more prompts are too long", tooLong.size() - MOST_NAMED);
    }
    problems.forEach(
        (index, problem) -> LOG.error("{}:{}: {}: skipped", file, lines.get(index), problem));
    if (!problems.isEmpty()) {
      LOG.error(
          "{} of the samples could not be answered; the scores are those of the others",
          problems.size());
    }
    return problems.isEmpty() ? 0 : 1;
  }

  private static void show(Answer answer) {
    System.err.printf(
        "--- sample %d%nprompt: %s%noutput: %s%ntruth:  %s%n",
        answer.index(),
        Printable.text(answer.prompt()),
        answer.skipped() ? "(skipped)" : Printable.text(answer.answer()),
        Printable.text(answer.truth()));
  }

  @Override
  public void close() {
    if (loaded != null) {
      loaded.close();
      loaded = null;
    }
  }
}
