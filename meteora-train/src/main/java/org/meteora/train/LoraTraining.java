package org.meteora.train;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.BiFunction;
import java.util.function.BooleanSupplier;
import org.meteora.checkpoint.TrainableModel;
import org.meteora.generate.Tokenizer;
import org.meteora.io.AtomicFiles;
import org.meteora.io.CacheFolders;
import org.meteora.io.FolderLock;
import org.meteora.model.LlamaTraining.Recompute;
import org.meteora.model.MemoryNeed;
import org.meteora.moe.Flags;
import org.meteora.parallel.Collective;
import org.meteora.safetensors.SafetensorsWriter;
import org.meteora.train.batch.TaskSamples;
import org.meteora.train.batch.TrainingSample;
import org.meteora.train.optim.FlatParameters;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Trains one LoRA adapter, on one task or on a mixture, and writes it as a PEFT folder.
 *
 * @param data JSONL of prompts and responses, by task: one, or several for an adapter over a
 *     mixture
 * @param samplesPerTask at most so many training samples of each task, drawn with the seed: a
 *     balanced mixture; 0: all
 * @param output becomes the PEFT folder; checkpoints, metrics and curves go into its {@code
 *     training/}
 * @param resume go on from the last checkpoint, if there is one
 */
public record LoraTraining(
    TrainConfig config,
    Path basePath,
    String name,
    Map<String, Path> data,
    int samplesPerTask,
    Path output,
    boolean resume,
    Flags flags) {
  private static final Logger LOG = LoggerFactory.getLogger(LoraTraining.class);

  /**
   * Trains and writes the adapter, by processes as {@link MeteoraTraining#run} says.
   *
   * @return the PEFT folder; empty when stopped early
   * @throws org.meteora.UserException when data or model are missing, or the loss diverges
   */
  public Optional<Path> run(Collective collective, Collective sharers, BooleanSupplier stop) {
    return Run.in(folder(), start(), collective, from -> run(from, collective, sharers, stop));
  }

  private Run.Start start() {
    return resume ? Run.Start.RESUME_OR_NEW : Run.Start.NEW;
  }

  private Path folder() {
    return output.resolve("training");
  }

  private Optional<Path> run(
      Optional<Path> from, Collective collective, Collective sharers, BooleanSupplier stop) {
    if (collective.rank() == 0) {
      AtomicFiles.removeLeftovers(output);
    }
    try (var model =
            TrainableModel.lora(
                config.model(basePath, flags), List.of(name), config.lora(), sharers);
        var parameters =
            new FlatParameters(model.llama().manager(), model.parameters(false), collective)) {
      var learner =
          LlamaLearner.of(model.llama(), model.context(), config.recompute(), 0, parameters);
      return run(model, parameters, learner, from, collective, stop);
    }
  }

  private Optional<Path> run(
      TrainableModel model,
      FlatParameters parameters,
      Learner learner,
      Optional<Path> from,
      Collective collective,
      BooleanSupplier stop) {
    var samples =
        samples(config, data, samplesPerTask, model.tokenizer(), Run.tokenization(config, model));
    var run = new Run(config, basePath, List.of(), List.of(name), folder(), from, collective, stop);
    var outcome =
        run.train(name, model, parameters, learner, samples, target -> write(target, parameters));
    if (outcome.isPresent() && collective.rank() == 0) {
      write(output, parameters);
      var inputs = new LinkedHashMap<String, Object>();
      inputs.put("name", name);
      inputs.put("base_model_path", CacheFolders.shown(basePath));
      inputs.put("data", data.values().stream().map(CacheFolders::shown).toList());
      inputs.put("samples_per_task", samplesPerTask == 0 ? null : samplesPerTask);
      Run.record(output, config.describe(), model, inputs, outcome.get());
    }
    return outcome.map(it -> output);
  }

  /**
   * Trains adapters of the same settings, flags and base model at the same time, each sample
   * through its own adapter. Each has its own order of data, schedule, clipping, state of the
   * optimiser, checkpoints and end, as if it were trained alone: weights are the same within
   * rounding, but for what dropout drops. Where there is too little memory for all, the first half
   * of them comes first, and so on.
   *
   * @param trainings different in name, data and output
   * @param stop asked after every step; true: write checkpoints and return
   * @return the PEFT folders of those that came to their end
   * @throws org.meteora.UserException as {@link #run}; the others write a checkpoint
   */
  public static List<Path> together(List<LoraTraining> trainings, BooleanSupplier stop) {
    return together(trainings, stop, LoraTraining::lacking);
  }

  /**
   * @param lacking what memory there is too little of for so many adapters in a model
   */
  static List<Path> together(
      List<LoraTraining> trainings,
      BooleanSupplier stop,
      BiFunction<LoraTraining, TrainableModel, Optional<String>> lacking) {
    if (trainings.size() == 1) {
      return trainings.getFirst().run(Collective.single(), Collective.single(), stop).stream()
          .toList();
    }
    var written = atOnce(trainings, stop, lacking);
    if (written.isPresent()) {
      return written.get();
    }
    int half = (trainings.size() + 1) / 2;
    var result = new ArrayList<>(together(trainings.subList(0, half), stop, lacking));
    if (!stop.getAsBoolean()) {
      result.addAll(together(trainings.subList(half, trainings.size()), stop, lacking));
    }
    return result;
  }

  private static Optional<String> lacking(LoraTraining training, TrainableModel model) {
    var llama = model.llama();
    long trained =
        model.parameters(false).values().stream().mapToLong(it -> it.getShape().size()).sum();
    var config = training.config();
    return MemoryNeed.NONE
        .and("masters, gradients and the optimizer", 4L * Float.BYTES * trained)
        .and(
            "activations",
            MemoryNeed.activationBytes(
                llama.config(),
                llama.dtype(),
                llama.layers().size(),
                Math.min(
                    Together.POSITIONS,
                    (long) model.adapters().size() * config.batchSize() * config.maxSeqLen()),
                config.recompute() != Recompute.NONE))
        .lacking(llama.backend());
  }

  /** All of them, or none when there is too little memory. */
  private static Optional<List<Path>> atOnce(
      List<LoraTraining> trainings,
      BooleanSupplier stop,
      BiFunction<LoraTraining, TrainableModel, Optional<String>> lacking) {
    var first = trainings.getFirst();
    var locks = new ArrayList<FolderLock>();
    var parameters = new ArrayList<FlatParameters>();
    try {
      var from = new ArrayList<Optional<Path>>();
      for (var each : trainings) {
        locks.add(Checkpoints.lock(each.folder()));
        AtomicFiles.removeLeftovers(each.output());
        from.add(Run.resume(each.folder(), each.start(), Collective.single()));
      }
      var names = trainings.stream().map(LoraTraining::name).toList();
      try (var model =
          TrainableModel.lora(
              first.config().model(first.basePath(), first.flags()),
              names,
              first.config().lora(),
              Collective.single())) {
        var lack = lacking.apply(first, model);
        if (lack.isPresent()) {
          LOG.info("{} adapters at once: {}", names.size(), lack.get());
          return Optional.empty();
        }
        for (int i = 0; i < names.size(); i++) {
          parameters.add(
              new FlatParameters(
                  model.llama().manager(), Collective.single(), own(model, i, names.size())));
        }
        var together =
            new Together(
                LlamaLearner.of(
                    model.llama(),
                    model.context(),
                    first.config().recompute(),
                    0,
                    parameter ->
                        parameters.stream().flatMap(each -> each.of(parameter).stream()).toList()),
                model.context(),
                names.size());
        var results =
            together.run(
                (i, learner, failed) ->
                    trainings
                        .get(i)
                        .run(
                            model,
                            parameters.get(i),
                            learner,
                            from.get(i),
                            Collective.single(),
                            () -> failed.getAsBoolean() || stop.getAsBoolean()));
        parameters.forEach(FlatParameters::close);
        return Optional.of(results.stream().flatMap(Optional::stream).toList());
      }
    } finally {
      locks.forEach(FolderLock::close);
    }
  }

  /** One adapter's rows of every A and columns of every B. */
  private static Map<String, FlatParameters.Part> own(TrainableModel model, int adapter, int of) {
    var result = new LinkedHashMap<String, FlatParameters.Part>();
    model
        .parameters(false)
        .forEach(
            (key, tensor) -> {
              int dim = key.endsWith(".lora_A") ? 0 : 1;
              long rank = tensor.getShape().get(dim) / of;
              result.put(key, new FlatParameters.Part(tensor, dim, adapter * rank, rank));
            });
    return result;
  }

  /**
   * All tasks' samples, or the same number of each.
   *
   * @param data JSONL by task
   * @param perTask training samples of each at most, drawn with the seed; 0: all
   */
  static TaskSamples samples(
      TrainConfig config,
      Map<String, Path> data,
      int perTask,
      Tokenizer tokenizer,
      TaskSamples.Tokenization tokenization) {
    var train = new ArrayList<TrainingSample>();
    var eval = new ArrayList<TrainingSample>();
    data.forEach(
        (task, file) -> {
          var samples =
              TaskSamples.read(
                  file, task, 0, tokenizer, tokenization, config.evalRatio(), config.seed());
          train.addAll(most(samples.train(), perTask, task));
          eval.addAll(samples.eval());
        });
    return new TaskSamples(List.copyOf(train), List.copyOf(eval));
  }

  /** They have been shuffled with the seed: the first are a draw. */
  private static List<TrainingSample> most(List<TrainingSample> samples, int perTask, String task) {
    if (perTask == 0) {
      return samples;
    }
    if (samples.size() < perTask) {
      LOG.warn("{} has only {} samples to train on, not {}", task, samples.size(), perTask);
    }
    return samples.subList(0, Math.min(perTask, samples.size()));
  }

  /** The adapter in float32 under PEFT's keys, then its configuration. */
  private void write(Path folder, FlatParameters parameters) {
    var tensors = parameters.values(name -> "base_model.model." + name + ".weight");
    SafetensorsWriter.write(
        folder.resolve("adapter_model.safetensors"), tensors, Map.of("format", "pt"));
    config.lora().write(folder, basePath.toString());
  }
}
