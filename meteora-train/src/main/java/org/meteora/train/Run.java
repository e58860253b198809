package org.meteora.train;

import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;
import java.util.function.Function;
import java.util.function.UnaryOperator;
import org.meteora.UserException;
import org.meteora.checkpoint.TrainableModel;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Jsonl;
import org.meteora.model.LlamaTraining.Recompute;
import org.meteora.model.MemoryNeed;
import org.meteora.parallel.Collective;
import org.meteora.parallel.Processes;
import org.meteora.parallel.ShardedWeights;
import org.meteora.tensor.Devices;
import org.meteora.train.batch.Batches;
import org.meteora.train.batch.TaskSamples;
import org.meteora.train.listener.AnswerWatch;
import org.meteora.train.listener.Curves;
import org.meteora.train.listener.MetricsFile;
import org.meteora.train.listener.Part;
import org.meteora.train.listener.ProgressListener;
import org.meteora.train.listener.TensorBoardFile;
import org.meteora.train.listener.TrainingListener;
import org.meteora.train.optim.FlatParameters;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * What all trainings share: from a model and samples to a finished run in a folder.
 *
 * @param adapters PEFT folders embedded, in the order of their indices
 * @param folder gets checkpoints, metrics and curves
 * @param from the checkpoint to go on from; empty: a new run
 */
record Run(
    TrainConfig config,
    Path basePath,
    List<Path> adapters,
    List<String> tasks,
    Path folder,
    Optional<Path> from,
    Collective collective,
    BooleanSupplier stop) {
  private static final Logger LOG = LoggerFactory.getLogger(Run.class);

  enum Start {
    /** In a folder without checkpoints. */
    NEW,
    /** From the folder's last checkpoint. */
    RESUME,
    /** From the folder's last checkpoint, or from the beginning when there is none. */
    RESUME_OR_NEW
  }

  /** Finds the checkpoint to go on from, before anything is loaded. */
  static Optional<Path> resume(Path folder, Start start, Collective collective) {
    // the first process looks: what others see of a shared file system may be older
    var found = collective.rank() == 0 ? latest(folder, start) : Optional.<Path>empty();
    var name =
        collective.broadcast(found.map(Path::toString).orElse("").getBytes(StandardCharsets.UTF_8));
    var path = new String(name, StandardCharsets.UTF_8);
    return path.isEmpty() ? Optional.empty() : Optional.of(Path.of(path));
  }

  private static Optional<Path> latest(Path folder, Start start) {
    AtomicFiles.requireWritableFolder(folder);
    var latest = new Checkpoints(folder, 1).latest();
    if (start == Start.RESUME && latest.isEmpty()) {
      throw new UserException("--resume: there is no checkpoint in " + folder);
    }
    if (start == Start.NEW && latest.isPresent()) {
      throw new UserException(
          "%s holds %s of an earlier run: add --resume to go on with it, or choose another folder",
          folder, latest.get().getFileName());
    }
    return latest;
  }

  static TaskSamples.Tokenization tokenization(TrainConfig config, TrainableModel model) {
    int most = Math.min(config.maxSeqLen(), model.llama().config().maxPositionEmbeddings());
    if (!config.appendEos().orElseThrow()) {
      return new TaskSamples.Tokenization(most, -1, config.answersOnly());
    }
    var said = model.llama().config().raw().path("eos_token_id");
    var eos = said.isArray() ? said.path(0) : said;
    if (!eos.isInt()) {
      throw new UserException("append_eos: the model's config.json has no eos_token_id");
    }
    return new TaskSamples.Tokenization(most, eos.intValue(), config.answersOnly());
  }

  /**
   * Says before the first step that the longest batch does not fit.
   *
   * @throws org.meteora.TooLittleMemory naming what is needed and what is free
   */
  private void requireMemory(
      TrainableModel model, FlatParameters parameters, Batches batches, long microBatches) {
    var llama = model.llama();
    long tokens = batches.mostTokens(microBatches);
    long before =
        llama.layers().stream()
            .takeWhile(layer -> layer.projections().stream().allMatch(it -> it.bank() == null))
            .count();
    MemoryNeed.NONE
        .and("the optimizer", 2L * Float.BYTES * (parameters.sliceEnd() - parameters.sliceStart()))
        .and(
            "activations of %,d tokens".formatted(tokens),
            MemoryNeed.activationBytes(
                llama.config(),
                llama.dtype(),
                llama.layers().size() - before,
                tokens,
                config.recompute() != Recompute.NONE))
        .require(llama.backend());
  }

  /**
   * Runs a training in a folder that no other run may write into meanwhile.
   *
   * @param training gets the checkpoint to go on from
   */
  static <T> T in(
      Path folder, Start start, Collective collective, Function<Optional<Path>, T> training) {
    try (var lock = collective.rank() == 0 ? Checkpoints.lock(folder) : null) {
      return training.apply(resume(folder, start, collective));
    }
  }

  Run anew() {
    return new Run(config, basePath, adapters, tasks, folder, Optional.empty(), collective, stop);
  }

  /** {@link #train} of a run that has one part. */
  Optional<Trainer.Outcome> train(
      String name,
      TrainableModel model,
      FlatParameters parameters,
      Learner learner,
      TaskSamples samples,
      Consumer<Path> export) {
    return train(name, part -> part, 0, model, parameters, learner, samples, export);
  }

  /**
   * Trains.
   *
   * @param part which part of the run, from its first
   * @param export writes the model into a checkpoint's folder, given the master values
   * @return empty when stopped before the last step
   */
  Optional<Trainer.Outcome> train(
      String name,
      UnaryOperator<Part> part,
      long begin,
      TrainableModel model,
      FlatParameters parameters,
      Learner learner,
      TaskSamples samples,
      Consumer<Path> export) {
    var batches =
        new Batches(samples.train(), config.batchSize(), config.answersOnly(), config.seed());
    var first = config.first(batches.perEpoch(), collective.size());
    var now = part.apply(first);
    LOG.info(
        "{}: {} samples ({} held out), {} steps of {} samples, {} trained parameters, {} on {}{},"
            + " forward mode {}",
        name,
        samples.train().size(),
        samples.eval().size(),
        now.steps(),
        (long) config.batchSize() * config.accumulation() * collective.size(),
        parameters.size(),
        model.llama().dtype().label(),
        collective.size() == 1 ? "" : collective.size() + " × ",
        Devices.name(model.llama().manager().getDevice()),
        model.context().mode().label());
    requireMemory(
        model, parameters, batches, now.end() * config.accumulation() * collective.size());
    var identity = RunIdentity.of(config, model, tasks, samples.train(), basePath, adapters);
    Processes.requireSame(collective, identity.lines());
    var trainer =
        new Trainer(
            config,
            now,
            begin,
            learner,
            parameters,
            batches,
            new HeldOut(
                config,
                now.gateLossWeight(),
                learner,
                samples.eval(),
                tasks,
                ShardedWeights.meeting(model.llama().frozen(), collective)),
            tasks,
            identity,
            folder,
            export,
            collective,
            listeners(name, now),
            stop);
    var outcome = trainer.run(from);
    if (outcome.steps() < now.end()) {
      LOG.info("{}", stopped(config, outcome.steps(), now.end()));
      return Optional.empty();
    }
    return Optional.of(outcome);
  }

  private List<TrainingListener> listeners(String name, Part part) {
    var metrics = folder.resolve("metrics.jsonl");
    var result =
        new ArrayList<TrainingListener>(
            List.of(
                new ProgressListener(name),
                new MetricsFile(metrics),
                new Curves(metrics, folder, stop),
                new AnswerWatch(part.before() == 0, !config.mayGoOn(part), LOG::warn)));
    if (config.tensorBoard()) {
      result.add(new TensorBoardFile(folder, config.describe()));
    }
    return result;
  }

  /** What to tell whoever stopped a run. */
  static String stopped(TrainConfig config, long made, long steps) {
    if (made > 0) {
      return "stopped after step " + made + " of " + steps + "; go on with --resume";
    }
    return config.gated()
        ? "stopped before the first step: nothing was done yet, start again without --resume"
        : "stopped before the first step of this adapter; go on with --resume";
  }

  /**
   * Writes {@code training.json}: how a result was made.
   *
   * @param inputs paths and names, added to the settings
   * @param outcome steps made, and the step whose parameters the result has
   */
  static void record(
      Path folder,
      Map<String, Object> settings,
      TrainableModel model,
      Map<String, Object> inputs,
      Trainer.Outcome outcome) {
    var result = new LinkedHashMap<String, Object>(inputs);
    result.putAll(settings);
    result.putAll(model.flags().describe());
    result.put("device", Devices.name(model.llama().manager().getDevice()));
    result.put("dtype", model.llama().dtype().label());
    result.put("steps", outcome.steps());
    result.put("kept_step", outcome.kept());
    AtomicFiles.writeString(folder.resolve("training.json"), Jsonl.pretty(result));
  }
}
