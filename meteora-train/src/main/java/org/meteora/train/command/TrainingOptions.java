package org.meteora.train.command;

import java.util.ArrayList;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.meteora.data.config.DeviceOptions;
import org.meteora.data.config.FlagOptions;
import org.meteora.data.config.SeedOption;
import org.meteora.data.config.ShardBaseOption;
import org.meteora.train.TrainConfig;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Model.OptionSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/**
 * Options of both training commands. Each has the name of its key in the section {@code train:}.
 */
public final class TrainingOptions {
  @Spec(Spec.Target.MIXEE)
  private CommandSpec command;

  @Option(
      names = "--batch-size",
      paramLabel = "N",
      description = "samples of a micro-batch (default: 4; train: 16)")
  private Integer batchSize;

  @Option(
      names = "--gradient-accumulation-steps",
      paramLabel = "N",
      description = "micro-batches a step (default: 2; train: 1)")
  private Integer gradientAccumulationSteps;

  @Option(
      names = "--learning-rate",
      paramLabel = "X",
      description = "peak rate, of the gates in train (default: 5e-4; train: 2e-2)")
  private Double learningRate;

  @Option(
      names = "--warmup-ratio",
      paramLabel = "X",
      description = "share of the steps that warm up (default: 0.005; train: 0.05)")
  private Double warmupRatio;

  @Option(
      names = "--weight-decay",
      paramLabel = "X",
      description = "AdamW's decay (default: 0.01; train: 0)")
  private Double weightDecay;

  @Option(
      names = "--max-grad-norm",
      paramLabel = "X",
      description = "clip the gradient's global norm; 0: never (default: 0.3; train: 0)")
  private Double maxGradNorm;

  @Option(
      names = "--max-steps",
      paramLabel = "N",
      description =
          "optimiser steps (default: 3 epochs; train: 600, of the gates unless all is trained)")
  private Long maxSteps;

  @Option(
      names = "--epochs",
      paramLabel = "X",
      description = "passes over the data, instead of steps")
  private Double epochs;

  @Option(
      names = "--max-seq-len",
      paramLabel = "N",
      description = "longer samples are cut (default: 4096)")
  private Integer maxSeqLen;

  @Option(
      names = "--gradient-checkpointing",
      arity = "0..1",
      fallbackValue = "true",
      paramLabel = "true|false|auto",
      description =
          "compute layers again in the backward pass to save memory; auto: those alone"
              + " whose activations do not fit, on a CPU all or none (default: auto)")
  private String gradientCheckpointing;

  @Option(
      names = "--no-gradient-checkpointing",
      description = "compute no layer again: --gradient-checkpointing false")
  private boolean noGradientCheckpointing;

  @Mixin private SeedOption seed;

  @Option(
      names = "--eval-ratio",
      paramLabel = "X",
      description = "share of each task's samples held out (default: 0.1)")
  private Double evalRatio;

  @Option(
      names = "--eval-steps",
      paramLabel = "N",
      description = "steps between evaluations (default: 500; train: 100)")
  private Long evalSteps;

  @Option(
      names = "--eval-samples",
      paramLabel = "N",
      description = "samples of an evaluation, as many of each task (default: 256)")
  private Integer evalSamples;

  @Option(
      names = "--save-steps",
      paramLabel = "N",
      description = "steps between checkpoints (default: 3000; train: 600)")
  private Long saveSteps;

  @Option(
      names = "--save-total-limit",
      paramLabel = "N",
      description = "checkpoints kept (default: 3)")
  private Integer saveTotalLimit;

  @Option(
      names = "--report-to",
      paramLabel = "none|tensorboard",
      description =
          "tensorboard: write event files beside metrics.jsonl, for tensorboard --logdir (default:"
              + " none)")
  private String reportTo;

  @Option(
      names = "--dropout",
      paramLabel = "X",
      description = "on the adapters' input in training (default: 0.1)")
  private Double dropout;

  @Option(
      names = "--append-eos",
      arity = "0..1",
      fallbackValue = "true",
      negatable = true,
      description =
          "end every sample with the model's end token, so that answers learn to stop (default:"
              + " false; train: as the adapters)")
  private Boolean appendEos;

  @Option(
      names = "--response-only",
      arity = "0..1",
      fallbackValue = "true",
      negatable = true,
      description =
          "the loss counts the response's tokens alone (default: true; train: as the adapters)")
  private Boolean responseOnly;

  @Mixin private DeviceOptions device;
  @Mixin FlagOptions flags;
  @Mixin ShardBaseOption shardBase;

  @Option(names = "--resume", description = "go on from the last checkpoint")
  boolean resume;

  /**
   * What was given on the command line, by the names of the config section: the value of every
   * option of the command whose name is one of these keys.
   */
  Map<String, Object> given(Collection<String> keys) {
    var result = new LinkedHashMap<String, Object>();
    for (var option : command.options()) {
      put(result, key(option), keys.contains(key(option)) ? option.getValue() : null);
    }
    put(result, "gradient_checkpointing", noGradientCheckpointing ? false : null);
    put(result, "dtype", device.dtype().orElse(null));
    return result;
  }

  private static String key(OptionSpec option) {
    return option.longestName().substring(2).replace('-', '_');
  }

  /** What must be the same in all processes that train together. */
  List<String> lines(TrainConfig config) {
    var result = new ArrayList<String>();
    config.describe().forEach((name, value) -> result.add(name + " " + value));
    result.add("--resume " + resume);
    result.add("--shard-base " + shardBase.isGiven());
    return result;
  }

  static void put(Map<String, Object> target, String key, Object value) {
    if (value != null) {
      target.put(key, value);
    }
  }
}
