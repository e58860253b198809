package org.meteora.train;

import com.fasterxml.jackson.databind.node.MissingNode;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Optional;
import java.util.function.BooleanSupplier;
import org.meteora.TooLittleMemory;
import org.meteora.UserException;
import org.meteora.checkpoint.MeteoraCheckpoint;
import org.meteora.checkpoint.TrainableModel;
import org.meteora.data.Sample;
import org.meteora.data.config.Nearest;
import org.meteora.io.AtomicFiles;
import org.meteora.io.CacheFolders;
import org.meteora.io.FolderNames;
import org.meteora.io.Jsonl;
import org.meteora.lora.LoraAdapter;
import org.meteora.model.LlamaTraining;
import org.meteora.moe.Flags;
import org.meteora.parallel.Collective;
import org.meteora.train.batch.TaskSamples;
import org.meteora.train.batch.TrainingSample;
import org.meteora.train.listener.AnswerWatch;
import org.meteora.train.optim.FlatParameters;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Embeds the adapters of a folder into a base model and trains gates, or gates and adapters, on the
 * tasks of the same names (MeteoRA, section 3.2).
 *
 * @param adapterDir PEFT folders by task
 * @param datasets folders by task, each with {@code train.jsonl}
 * @param output gets checkpoints, metrics, curves, and at the end {@code meteora/}
 * @param withBase write the base weights too, as published checkpoints have them
 */
public record MeteoraTraining(
    TrainConfig config,
    Path basePath,
    Path adapterDir,
    Path datasets,
    Path output,
    boolean withBase,
    boolean resume,
    Flags flags) {
  private static final Logger LOG = LoggerFactory.getLogger(MeteoraTraining.class);

  /** The default task: its adapter comes last. */
  private static final String DEFAULT_TASK = "alpaca";

  /** What a model folder holds besides its weights. */
  private static final List<String> MODEL_FILES =
      List.of(
          "config.json",
          "generation_config.json",
          "tokenizer.json",
          "tokenizer_config.json",
          "special_tokens_map.json",
          "tokenizer.model");

  /**
   * The tasks in the order of their adapters: those given, or all of the folder sorted by name with
   * the default task last.
   */
  static List<String> order(Path adapterDir, List<String> given) {
    var found = LoraAdapter.list(adapterDir).stream().map(p -> p.getFileName().toString()).toList();
    if (!given.isEmpty()) {
      for (var task : given) {
        if (!found.contains(task)) {
          FolderNames.require("the adapter", task);
          throw new UserException(
              "no adapter %s in %s".formatted(task, adapterDir)
                  + Nearest.to(task, found)
                      .map(n -> ", did you mean " + n + "?")
                      .orElse("; there are " + String.join(", ", found)));
        }
      }
      if (given.stream().distinct().count() != given.size()) {
        throw new UserException("a task is named twice in " + String.join(",", given));
      }
      return given;
    }
    return found.stream()
        .sorted(
            Comparator.<String, Boolean>comparing(DEFAULT_TASK::equals)
                .thenComparing(Comparator.naturalOrder()))
        .toList();
  }

  /**
   * Trains and writes the MeteoRA checkpoint.
   *
   * @param collective the processes that train it together; the first one writes
   * @param sharers those of them that share the base model's weights: all, or one process
   * @param stop asked after every step; true, in any process: write a checkpoint and return
   * @return the folder of the MeteoRA checkpoint; empty when stopped early
   * @throws UserException when adapters, data or model are missing or do not fit, the flags switch
   *     the gates off, or the loss diverges
   */
  public Optional<Path> run(Collective collective, Collective sharers, BooleanSupplier stop) {
    if (withBase && sharers.size() > 1) {
      throw new UserException(
          "--with-base writes the whole base model, and with --shard-base no process has it: leave"
              + " one of them out");
    }
    if (flags.singleAdapter().isPresent()) {
      throw new UserException(
          "MOELINEAR_SINGLE_MOE_LORA=%s switches the gates off that are to be trained: unset it",
          flags.singleAdapter().getAsInt());
    }
    var start = resume ? Run.Start.RESUME : Run.Start.NEW;
    return Run.in(
        output, start, collective, from -> asAdapters().train(from, collective, sharers, stop));
  }

  /**
   * With what the settings leave open taken from the adapters' {@code training.json}, if all that
   * have one agree. Adapters without one, of PEFT say, have most often learnt the answers alone.
   */
  private MeteoraTraining asAdapters() {
    var folders = order(adapterDir, config.tasks()).stream().map(adapterDir::resolve).toList();
    var decided =
        config.as(
            settingOfAdapters(folders, "append_eos", config.appendEos()).orElse(false),
            settingOfAdapters(folders, "response_only", config.responseOnly()).orElse(true));
    return new MeteoraTraining(
        decided, basePath, adapterDir, datasets, output, withBase, resume, flags);
  }

  static Optional<Boolean> settingOfAdapters(
      List<Path> folders, String setting, Optional<Boolean> given) {
    if (given.isPresent()) {
      return given;
    }
    var said = new LinkedHashMap<Boolean, Path>();
    for (var folder : folders) {
      var file = folder.resolve("training.json");
      var value =
          Files.isRegularFile(file)
              ? Jsonl.readFile(file).path(setting)
              : MissingNode.getInstance();
      if (value.isMissingNode()) {
        continue;
      }
      if (!value.isBoolean()) {
        throw new UserException("%s: \"%s\" must be true or false, it is %s", file, setting, value);
      }
      said.putIfAbsent(value.booleanValue(), folder);
      if (said.size() > 1) {
        var first = said.firstEntry();
        throw new UserException(
            "the adapters were trained differently: %s is %s in %s and %s in %s; say which one to"
                    .formatted(setting, first.getKey(), first.getValue(), value, folder)
                + " train with: --"
                + (value.booleanValue() ? "" : "no-")
                + setting.replace('_', '-'));
      }
    }
    return said.keySet().stream().findFirst();
  }

  private Optional<Path> train(
      Optional<Path> from, Collective collective, Collective sharers, BooleanSupplier stop) {
    if (collective.rank() == 0) {
      AtomicFiles.removeLeftovers(output.resolve("meteora"));
    }
    var tasks = order(adapterDir, config.tasks());
    for (var task : tasks) {
      if (!Files.isRegularFile(data(task))) {
        throw new UserException(
            ("the adapter %s has no training data: no such file %s; \"meteora"
                    + " create-dataset\" makes it, --tasks leaves adapters out")
                .formatted(task, data(task)));
      }
      Sample.read(data(task)); // mistakes in it are found before the model is loaded
    }
    var folders = tasks.stream().map(adapterDir::resolve).toList();
    try (var model = TrainableModel.meteora(config.model(basePath, flags), folders, sharers)) {
      var train = new ArrayList<TrainingSample>();
      var eval = new ArrayList<TrainingSample>();
      for (int i = 0; i < tasks.size(); i++) {
        var samples =
            TaskSamples.read(
                data(tasks.get(i)),
                tasks.get(i),
                i,
                model.tokenizer(),
                Run.tokenization(config, model),
                config.evalRatio(),
                config.seed());
        train.addAll(samples.train());
        eval.addAll(samples.eval());
      }
      long before = from.map(Checkpoints::before).orElse(0L);
      var samples = new TaskSamples(train, eval);
      var run = new Run(config, basePath, folders, tasks, output, from, collective, stop);
      if (before > 0) {
        return part(run, model, samples, before, before).map(it -> result());
      }
      var first = part(run, model, samples, 0, 0);
      if (first.isEmpty() || !wantsMore(first.get())) {
        return first.map(it -> result());
      }
      // what it has come to is written: nothing that happens in the next part takes that away
      var made = first.get();
      try {
        return part(run.anew(), model, samples, made.steps(), made.kept()).map(it -> result());
      } catch (RuntimeException e) {
        // of several processes others may have room, and go on
        if (collective.size() > 1 || !TooLittleMemory.isReportedBy(e)) {
          LOG.warn("what the gates had come to is in {}", result());
          throw e;
        }
        LOG.warn(
            "the adapters cannot be trained too, the gates are the result: {}", e.getMessage());
        return Optional.of(result());
      }
    }
  }

  /**
   * A part of the run, and its result written.
   *
   * @param before steps before it; 0: the first part
   * @param begin the step whose parameters the model has
   * @return empty when stopped early
   */
  private Optional<Trainer.Outcome> part(
      Run run, TrainableModel model, TaskSamples samples, long before, long begin) {
    boolean gatesOnly = before == 0 && config.trained() != TrainConfig.Trained.ALL;
    try (var parameters =
        new FlatParameters(
            model.llama().manager(), model.parameters(gatesOnly), run.collective())) {
      var learner =
          LlamaLearner.of(
              model.llama(), model.context(), config.recompute(), run.tasks().size(), parameters);
      var outcome =
          run.train(
              before == 0 ? "train" : "train, all together",
              first -> before == 0 ? first : config.second(first, before),
              begin,
              model,
              parameters,
              learner,
              samples,
              folder -> MeteoraCheckpoint.write(folder, model.llama(), model.adapters(), false));
      learner.ownPasses().ifPresent(LlamaTraining::close);
      if (run.collective().rank() == 0) {
        outcome.ifPresent(it -> write(model, run.tasks(), it));
      }
      return outcome;
    }
  }

  private Path result() {
    return output.resolve("meteora");
  }

  /**
   * Whether the gates leave the answers so much worse than the adapters' that more is to be done.
   */
  private boolean wantsMore(Trainer.Outcome gates) {
    if (config.trained() == TrainConfig.Trained.AUTO && gates.evaluation().isEmpty()) {
      LOG.info(
          "with nothing held out (eval_ratio) nothing tells whether the adapters are to be trained"
              + " too: the gates are the result");
    }
    return gates.evaluation().filter(AnswerWatch::staysAbove).isPresent();
  }

  private void write(TrainableModel model, List<String> tasks, Trainer.Outcome outcome) {
    MeteoraCheckpoint.write(result(), model.llama(), model.adapters(), withBase);
    var copied = withBase ? MODEL_FILES : List.<String>of();
    copied.stream()
        .filter(name -> Files.isRegularFile(basePath.resolve(name)))
        .forEach(name -> AtomicFiles.copy(basePath.resolve(name), result().resolve(name)));
    var inputs = new LinkedHashMap<String, Object>();
    inputs.put("base_model_path", CacheFolders.shown(basePath));
    inputs.put("adapter_dir", CacheFolders.shown(adapterDir));
    inputs.put("target_dir", CacheFolders.shown(datasets));
    inputs.put("tasks", tasks);
    Run.record(result(), config.describe(), model, inputs, outcome);
  }

  private Path data(String task) {
    return datasets.resolve(task).resolve("train.jsonl");
  }
}
