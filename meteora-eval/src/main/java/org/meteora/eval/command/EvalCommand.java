package org.meteora.eval.command;

import java.io.PrintWriter;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.Callable;
import org.meteora.UserException;
import org.meteora.data.config.ConfigOptions;
import org.meteora.data.config.Limits;
import org.meteora.data.config.MeteoraConfig;
import org.meteora.data.config.ProcessOptions;
import org.meteora.data.config.ShardBaseOption;
import org.meteora.data.tasks.Tasks;
import org.meteora.eval.Answer;
import org.meteora.eval.EvalTask;
import org.meteora.eval.Scores;
import org.meteora.eval.report.SavedAnswers;
import org.meteora.eval.report.SavedResult;
import org.meteora.eval.report.ScoreTable;
import org.meteora.eval.sweep.Sweep;
import org.meteora.generate.GenerationConfig;
import org.meteora.io.CacheFolders;
import org.meteora.io.Digests;
import org.meteora.io.Folders;
import org.meteora.parallel.Collective;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** {@code meteora eval}: answers a task's test prompts and scores the answers. */
@Command(
    name = "eval",
    customSynopsis = "(--task NAME,… | --rescore FILE)",
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
  @Spec private CommandSpec command;

  @Mixin private ConfigOptions config;
  @Mixin ModelOptions model;
  @Mixin GenerationOptions generation;
  @Mixin MaxNewTokensOption maxNewTokens;
  @Mixin private ProcessOptions processes;
  @Mixin private ShardBaseOption shardBase;

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
      description = "Sequences at once at most; prompts join as others end (default: 1).")
  int batchSize;

  @Option(
      names = "--limit",
      paramLabel = "N",
      description = "The first N samples only (default: all, or the task's cap of 1000).")
  Integer limit;

  @Option(
      names = "--max-length",
      paramLabel = "N",
      defaultValue = "4096",
      description =
          "Tokens of prompt and answer at most; longer prompts are skipped and counted (default:"
              + " 4096, or what the model takes).")
  int maxLength;

  @Option(names = "--save", description = "Write scores and answers to the result folder.")
  boolean save;

  @Option(
      names = "--debug",
      description = "Print prompt, output and truth of the first ten samples.")
  boolean debug;

  @Option(
      names = "--check-batching",
      paramLabel = "N",
      defaultValue = "0",
      description =
          "Answer the first N samples once more, each alone, and say how many come out otherwise:"
              + " with several at once sums are taken in another order, which in 16 bits can change"
              + " a token.")
  int checkBatching;

  @Option(
      names = "--no-prefix-cache",
      description =
          "Compute the whole of each prompt, even where others begin alike. With --batch-size 1 an"
              + " answer's sums then depend on no other sample, order, or run that was resumed.")
  boolean noPrefixCache;

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
              + " <eval_result_save_dir>/meteora/<task>.routes/routing.{html,png,json}; of several"
              + " tasks in tasks.routes too.")
  boolean routes;

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
      boolean other = tasks != null || limit != null || !sweep.isEmpty();
      if (other || save || debug || routes || resume || overwrite) {
        throw new UserException(
            "--rescore scores saved answers and does nothing else: leave out --task, --save,"
                + " --resume, --overwrite, --sweep, --debug, --routes and --limit");
      }
      var answers = SavedAnswers.read(rescore);
      var name = answers.getFirst().task();
      Optional<EvalTask> saved =
          parts == null ? SavedAnswers.task(rescore, name) : Optional.empty();
      var scored = saved.orElseGet(() -> evalTask(name, config.load().targetDir()));
      scored.requireParts(answers.stream().map(Answer::truth).toList());
      out().print(ScoreTable.of(scored.name() + " (saved answers)", Scores.of(scored, answers)));
      out().flush();
      return 0;
    }
    if (tasks == null) {
      throw new UserException("eval needs --task NAME (or --rescore FILE)");
    }
    if (!sweep.isEmpty()) {
      if (save || resume || debug || routes || checkBatching > 0) {
        throw new UserException(
            "--sweep saves and goes on by itself: leave out --save, --resume, --debug, --routes and"
                + " --check-batching");
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
    var evaluated = evaluated(settings.targetDir());
    var same = new ArrayList<>(arguments());
    evaluated.forEach(
        each -> {
          // what is missing is found out before the first task's work, not before the last one's
          var file = TestSet.read(each, settings.targetDir(), limit).file();
          model.spec(settings, each.routingTemperature());
          same.add(file + " of checksum " + Digests.ofFile(file));
        });
    return processes.run(
        model.device(), same, (all, device) -> evaluateAll(evaluated, settings, all, device));
  }

  private EvalTask evalTask(String name, Path targetDir) {
    return parts == null
        ? EvalTask.of(name, targetDir)
        : EvalTask.composite(name, parts, targetDir);
  }

  /** The tasks that {@code --task} names, each once. */
  private List<EvalTask> evaluated(Path targetDir) {
    var names = tasks;
    if (tasks.equals(List.of("all"))) {
      var found = Folders.having(targetDir, "test.jsonl");
      names = found.stream().map(folder -> folder.getFileName().toString()).toList();
      if (names.isEmpty()) {
        throw new UserException("--task all: no folder in " + targetDir + " has a test.jsonl");
      }
    }
    var evaluated = names.stream().distinct().map(name -> evalTask(name, targetDir)).toList();
    if (parts != null && evaluated.size() > 1) {
      throw new UserException("--tasks says what one composite task is made of: name one --task");
    }
    return evaluated;
  }

  /** One task after another; the model is loaded again only where it is to be another. */
  private int evaluateAll(
      List<EvalTask> evaluated, MeteoraConfig settings, Collective all, String device) {
    if (checkBatching > 0 && all.size() > 1) {
      throw new UserException("--check-batching is for one process, not " + all.size());
    }
    if (!sweep.isEmpty() && all.size() > 1) {
      throw new UserException("--sweep is the work of one process: leave out --processes");
    }
    var sharers = shardBase.sharers(all);
    try (var evaluation = new Evaluation(this, settings, all, sharers, device)) {
      int code = 0;
      for (var each : evaluated) {
        code =
            Math.max(
                code,
                sweep.isEmpty()
                    ? evaluation.evaluate(each)
                    : evaluation.sweep(Sweep.of(sweep), each));
      }
      evaluation.writeRoutesOfAll();
      return code;
    }
  }

  PrintWriter out() {
    return command.commandLine().getOut();
  }

  List<String> arguments() {
    return command.commandLine().getParseResult().originalArgs();
  }

  /** What becomes of answers that are there already. */
  SavedResult.Existing existing() {
    return resume
        ? SavedResult.Existing.RESUME
        : overwrite ? SavedResult.Existing.OVERWRITE : SavedResult.Existing.KEEP_OTHERS;
  }

  /**
   * What a saved result says of the settings.
   *
   * @param chosen how tokens are chosen, with the limit that held in the end
   */
  Map<String, Object> describe(TestSet test, GenerationConfig chosen) {
    var result = new LinkedHashMap<String, Object>();
    result.put("test_file", CacheFolders.shown(test.file()));
    result.put("test_sha256", Digests.ofFile(test.file()));
    result.put("tasks", test.task().parts());
    var own = new LinkedHashMap<>(test.task().metrics());
    own.keySet().removeAll(Tasks.names());
    if (!own.isEmpty()) {
      result.put("metrics", own);
    }
    result.put("batch_size", batchSize);
    result.put("limit", limit);
    result.put("max_length", chosen.maxLength());
    maxNewTokens.value().ifPresent(tokens -> result.put("max_new_tokens", tokens));
    if (noPrefixCache) {
      result.put("prefix_cache", false);
    }
    result.put("no_repeat_ngram_size", chosen.noRepeatNgramSize());
    result.put("do_sample", chosen.sample());
    result.put("temperature", chosen.sample() ? chosen.temperature() : null);
    result.put("top_p", chosen.sample() ? chosen.topP() : null);
    result.put("top_k", chosen.sample() ? chosen.topK() : null);
    result.put("seed", chosen.sample() ? chosen.seed() : null);
    result.put("eos_token_ids", chosen.eosTokenIds());
    result.put("pad_token_id", chosen.padTokenId());
    return result;
  }

  private void check() {
    Limits.atLeast(1, "--limit", limit);
    Limits.atLeast(1, "--batch-size", batchSize);
    Limits.atLeast(0, "--check-batching", checkBatching);
    Limits.atLeast(1, "--max-length", maxLength);
    maxNewTokens.value();
    generation.check();
  }
}
