package org.meteora.train;

import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeSet;
import org.meteora.UserException;
import org.meteora.checkpoint.TrainableModel;
import org.meteora.lora.LoraConfig;
import org.meteora.model.LlamaTraining.Recompute;
import org.meteora.moe.Flags;
import org.meteora.moe.RoutingSettings;
import org.meteora.nn.Projection;
import org.meteora.train.listener.Part;

/**
 * Everything a training run depends on besides its data. Read from the section {@code train:} of
 * config.yaml and from options of the same names; options win. What is not given comes from the
 * recipe: {@code default} keeps what the adapters know (docs/training.md has the measurements),
 * {@code paper} is the original's training.
 *
 * <p>Long, because it is a list of settings, with what each recipe gives them and what is refused.
 *
 * @param batchSize samples of a micro-batch on each device
 * @param accumulation micro-batches a step
 * @param recipe {@code default} or {@code paper}
 * @param learningRate the schedule's peak: the gates', or that of an adapter trained alone
 * @param adapterLearningRate the peak of A and B under gates
 * @param warmupRatio share of the steps in which the rate rises
 * @param weightDecay AdamW's decoupled decay
 * @param maxGradNorm global L2 norm that gradients are clipped to; 0: no clipping
 * @param adapterMaxGradNorm the same for A and B under gates, whose norm is then taken apart from
 *     the gates'; empty: one norm over both
 * @param maxSteps optimiser steps; empty when {@code epochs} is given
 * @param epochs passes over the data; empty when {@code maxSteps} is given
 * @param maxSeqLen most tokens of a sample
 * @param recompute which layers keep only their input and are computed again in the backward pass:
 *     as many as memory asks for, all, or none
 * @param seed of splits, orders, first values and dropout
 * @param evalRatio share of the samples held out
 * @param evalSteps steps from one evaluation to the next
 * @param evalSamples samples of an evaluation, as many of each task
 * @param keepBest the result is the evaluation's with the lowest answer loss, not the last step's
 * @param saveSteps steps from one checkpoint to the next
 * @param saveTotalLimit how many checkpoints are kept
 * @param tensorBoard event files are written beside {@code metrics.jsonl}
 * @param dropout on the adapters' input
 * @param appendEos end every sample with the model's end token; empty: as the adapters were trained
 * @param trained the gates, or the adapters too
 * @param gateLossWeight factor of the gates' loss
 * @param topK adapters for each token in training
 * @param device {@code cpu}, {@code cuda} or {@code cuda:1}; empty: a GPU when there is one
 * @param dtype {@code f32} or {@code bf16}; empty: bf16 on a GPU, f32 elsewhere
 * @param tasks their names in the adapters' order; empty: all found
 * @param lora what an adapter looks like that {@code train-lora} makes
 * @param responseOnly the language-model loss counts the response's tokens alone; empty: as the
 *     adapters were trained
 * @param gated whether this is the training of gates ({@code train}) or of one adapter ({@code
 *     train-lora})
 */
public record TrainConfig(
    int batchSize,
    int accumulation,
    String recipe,
    double learningRate,
    double adapterLearningRate,
    double warmupRatio,
    double weightDecay,
    double maxGradNorm,
    Optional<Double> adapterMaxGradNorm,
    Optional<Long> maxSteps,
    Optional<Double> epochs,
    int maxSeqLen,
    Recompute recompute,
    long seed,
    double evalRatio,
    long evalSteps,
    int evalSamples,
    boolean keepBest,
    long saveSteps,
    int saveTotalLimit,
    boolean tensorBoard,
    double dropout,
    Optional<Boolean> appendEos,
    Trained trained,
    double gateLossWeight,
    int topK,
    Optional<String> device,
    Optional<String> dtype,
    List<String> tasks,
    LoraConfig lora,
    Optional<Boolean> responseOnly,
    boolean gated) {
  private static final List<String> COMMON =
      List.of(
          "batch_size",
          "gradient_accumulation_steps",
          "learning_rate",
          "warmup_ratio",
          "weight_decay",
          "max_grad_norm",
          "max_steps",
          "epochs",
          "max_seq_len",
          "gradient_checkpointing",
          "seed",
          "eval_ratio",
          "eval_steps",
          "eval_samples",
          "save_steps",
          "save_total_limit",
          "report_to",
          "dropout",
          "append_eos",
          "device",
          "dtype");
  private static final List<String> METEORA =
      List.of(
          "recipe",
          "train",
          "adapter_learning_rate",
          "adapter_max_grad_norm",
          "gate_loss_weight",
          "routing_top_k",
          "response_only",
          "keep",
          "tasks");
  private static final List<String> LORA =
      List.of("r", "alpha", "target_modules", "layers_to_transform", "use_rslora", "response_only");

  /** All keys of gates' training, but the section for adapters. */
  public static final Set<String> METEORA_KEYS = keys(METEORA);

  /** All keys of an adapter's training. */
  public static final Set<String> LORA_KEYS = keys(LORA);

  /** What a resumed run may have otherwise: it changes what is done, not what the values mean. */
  private static final Set<String> MAY_CHANGE =
      Set.of(
          "max_steps",
          "epochs",
          "gradient_checkpointing",
          "eval_steps",
          "eval_samples",
          "keep",
          "save_steps",
          "save_total_limit",
          "report_to");

  /**
   * What a recipe gives where nothing else is said.
   *
   * @param adapterLearningRate empty: the gates' rate
   */
  private record Recipe(
      int batchSize,
      int accumulation,
      double learningRate,
      Optional<Double> adapterLearningRate,
      double warmupRatio,
      double weightDecay,
      double maxGradNorm,
      Optional<Double> adapterMaxGradNorm,
      long maxSteps,
      long evalSteps,
      long saveSteps,
      double gateLossWeight,
      Trained trained,
      boolean keepBest,
      Optional<Boolean> asAdapters) {
    /** The original's, and {@code train-lora}'s. */
    static final Recipe PAPER =
        new Recipe(
            4,
            2,
            5e-4,
            Optional.empty(),
            0.005,
            0.01,
            0.3,
            Optional.empty(),
            15_000,
            500,
            3000,
            50,
            Trained.ALL,
            false,
            Optional.of(false));

    /** What was found to keep the adapters' knowledge. */
    static final Recipe DEFAULT =
        new Recipe(
            16,
            1,
            2e-2,
            Optional.of(1e-4),
            0.05,
            0,
            0,
            Optional.of(1.0),
            600,
            100,
            600,
            10,
            Trained.AUTO,
            true,
            Optional.empty());
  }

  /** The adapters' peak rate in the second part of {@link Trained#AUTO}. */
  private static final double SECOND_RATE = 2e-3;

  /** How much lower the gates' peak rate is there than in the first. */
  private static final double SECOND_OF_GATES = 10;

  /** What {@code train} trains. */
  public enum Trained {
    /** The gates; A and B stay as they are. */
    GATES,
    /** Gates, A and B. */
    ALL,
    /** The gates, and where they leave the answers worse than the adapters', a part of all. */
    AUTO;

    private String label() {
      return name().toLowerCase(Locale.ROOT);
    }
  }

  /** Passes over the data of {@code train-lora} when neither steps nor epochs are given. */
  public static final double DEFAULT_LORA_EPOCHS = 3;

  /**
   * MeteoRA's training.
   *
   * @param section the section {@code train:}; its sub-section {@code lora:} is for {@code
   *     train-lora}
   * @param options command-line options, names as in the section
   * @throws UserException naming an unknown key and the nearest known one, or a value out of range
   */
  public static TrainConfig meteora(Map<String, Object> section, Map<String, Object> options) {
    checkLora(section);
    var merged = new LinkedHashMap<>(section);
    merged.remove("lora");
    return read(merge(known(merged, "config section train", METEORA), options), METEORA, false);
  }

  /**
   * An adapter's training: the section's common keys, then those of {@code train: lora:}, then
   * options.
   *
   * @throws UserException as {@link #meteora(Map, Map)}
   */
  public static TrainConfig lora(Map<String, Object> section, Map<String, Object> options) {
    return read(merge(merge(common(section), checkLora(section)), options), LORA, true);
  }

  /**
   * The training of an adapter's vectors for phatgoose: {@link #lora(Map, Map)}, with these steps
   * and the paper's rate.
   *
   * @throws UserException as {@link #lora(Map, Map)}
   */
  public static TrainConfig phatgoose(
      Map<String, Object> section, Map<String, Object> options, long steps) {
    var over = new LinkedHashMap<>(options);
    over.remove("epochs");
    over.put("max_steps", steps);
    over.put("learning_rate", 5e-3);
    return lora(section, over);
  }

  /**
   * LoRA-Flow's training: the section's common keys, then options. Where neither says otherwise, 5
   * passes over the samples at a rate of 1e-3, the paper's.
   *
   * @throws UserException as {@link #meteora(Map, Map)}
   */
  public static TrainConfig loraFlow(Map<String, Object> section, Map<String, Object> options) {
    checkLora(section);
    var merged = merge(common(section), options);
    merged.putIfAbsent("learning_rate", 1e-3);
    if (!merged.containsKey("max_steps")) {
      merged.putIfAbsent("epochs", 5);
    }
    return read(merged, List.of(), true);
  }

  /** The section's keys that are not for gates alone. */
  private static Map<String, Object> common(Map<String, Object> section) {
    var result = new LinkedHashMap<>(section);
    result.remove("lora");
    known(result, "config section train", METEORA);
    METEORA.forEach(result::remove);
    return result;
  }

  private static Map<String, Object> checkLora(Map<String, Object> section) {
    var lora = section.get("lora");
    if (lora == null) {
      return Map.of();
    }
    if (!(lora instanceof Map<?, ?> map)) {
      throw new UserException("config section train: lora must be a map of keys to values");
    }
    var result = new LinkedHashMap<String, Object>();
    map.forEach((key, value) -> result.put(String.valueOf(key), value));
    return known(result, "config section train.lora", LORA);
  }

  private static Map<String, Object> known(
      Map<String, Object> values, String where, List<String> more) {
    var names = keys(more);
    if (more == METEORA) {
      names.add("lora");
    }
    new Settings(where, values, names);
    return values;
  }

  /** {@code over} on top of {@code under}; steps and epochs replace each other. */
  private static Map<String, Object> merge(Map<String, Object> under, Map<String, Object> over) {
    var result = new LinkedHashMap<String, Object>();
    under.forEach((key, value) -> result.put(key.replace('-', '_'), value));
    if (over.containsKey("max_steps")) {
      result.remove("epochs");
    }
    if (over.containsKey("epochs")) {
      result.remove("max_steps");
    }
    result.putAll(over);
    return result;
  }

  private static Set<String> keys(List<String> more) {
    var names = new TreeSet<>(COMMON);
    names.addAll(more);
    return names;
  }

  private static TrainConfig read(Map<String, Object> values, List<String> more, boolean lora) {
    var s = new Settings("training settings", values, keys(more));
    if (s.has("max_steps") && s.has("epochs")) {
      throw new UserException("training settings: give max_steps or epochs, not both");
    }
    var recipeName = s.choice("recipe", "default", "default", "paper");
    var recipe = lora || recipeName.equals("paper") ? Recipe.PAPER : Recipe.DEFAULT;
    double rate = s.number("learning_rate", recipe.learningRate(), 0, 1e3);
    Optional<Long> maxSteps =
        s.has("max_steps") ? Optional.of(s.whole("max_steps", 0, 1)) : Optional.empty();
    Optional<Double> epochs =
        s.has("epochs") ? Optional.of(s.number("epochs", 0, 1e-6, 1e9)) : Optional.empty();
    if (maxSteps.isEmpty() && epochs.isEmpty()) {
      if (lora) {
        epochs = Optional.of(DEFAULT_LORA_EPOCHS);
      } else {
        maxSteps = Optional.of(recipe.maxSteps());
      }
    }
    var targets = s.list("target_modules");
    if (targets.isEmpty() || targets.equals(List.of("all-linear"))) {
      targets = Projection.NAMES;
    }
    for (var target : targets) {
      if (!Projection.NAMES.contains(target)) {
        throw new UserException(
            "target_modules: unknown module \""
                + target
                + "\""
                + Settings.nearest(target, Projection.NAMES)
                    .map(n -> ", did you mean \"" + n + "\"?")
                    .orElse("; choose from " + String.join(", ", Projection.NAMES)));
      }
    }
    double dropout = s.number("dropout", 0.1, 0, 0.99);
    var trained =
        Trained.valueOf(
            s.choice("train", recipe.trained().label(), "auto", "gates", "all")
                .toUpperCase(Locale.ROOT));
    var dtype = s.text("dtype");
    if (dtype.isPresent()) {
      s.choice("dtype", "", "f32", "float32", "bf16", "bfloat16");
    }
    return new TrainConfig(
        s.integer("batch_size", recipe.batchSize(), 1),
        s.integer("gradient_accumulation_steps", recipe.accumulation(), 1),
        recipeName,
        rate,
        s.number(
            "adapter_learning_rate",
            trained == Trained.AUTO ? SECOND_RATE : recipe.adapterLearningRate().orElse(rate),
            0,
            1e3),
        s.number("warmup_ratio", recipe.warmupRatio(), 0, 1),
        s.number("weight_decay", recipe.weightDecay(), 0, 1),
        s.number("max_grad_norm", recipe.maxGradNorm(), 0, 1e12),
        s.has("adapter_max_grad_norm")
            ? Optional.of(s.number("adapter_max_grad_norm", 0, 0, 1e12))
            : recipe.adapterMaxGradNorm(),
        maxSteps,
        epochs,
        s.integer("max_seq_len", 4096, 2),
        recompute(s),
        s.whole("seed", 42, Long.MIN_VALUE),
        s.number("eval_ratio", 0.1, 0, 0.9),
        s.whole("eval_steps", recipe.evalSteps(), 1),
        s.integer("eval_samples", 256, 1),
        s.choice("keep", recipe.keepBest() ? "best" : "last", "best", "last").equals("best"),
        s.whole("save_steps", recipe.saveSteps(), 1),
        s.integer("save_total_limit", 3, 1),
        s.choice("report_to", "none", "none", "tensorboard").equals("tensorboard"),
        dropout,
        s.has("append_eos") ? Optional.of(s.flag("append_eos", false)) : recipe.asAdapters(),
        trained,
        s.number("gate_loss_weight", recipe.gateLossWeight(), 0, 1e9),
        s.integer("routing_top_k", RoutingSettings.DEFAULT.topK(), 1),
        s.text("device"),
        dtype,
        s.list("tasks"),
        LoraConfig.of(
            s.integer("r", 8, 1),
            s.number("alpha", 16, 1e-6, 1e6),
            dropout,
            Set.copyOf(targets),
            s.flag("use_rslora", false),
            s.integers("layers_to_transform")),
        s.has("response_only")
            ? Optional.of(s.flag("response_only", true))
            : lora ? Optional.of(true) : recipe.asAdapters(),
        !lora);
  }

  private static Recompute recompute(Settings s) {
    return switch (s.choice("gradient_checkpointing", "auto", "auto", "true", "false")) {
      case "true" -> Recompute.ALL;
      case "false" -> Recompute.NONE;
      default -> Recompute.AUTO;
    };
  }

  /** The model to train: each token takes one adapter where no gates are trained. */
  TrainableModel.Spec model(Path basePath, Flags flags) {
    return new TrainableModel.Spec(basePath, device, dtype, gated ? topK : 1, dropout, seed, flags);
  }

  /** Whether the language-model loss counts answers alone; not before it has been decided. */
  boolean answersOnly() {
    return responseOnly.orElseThrow();
  }

  /** These settings, with what was left open decided as the adapters were trained. */
  TrainConfig as(boolean adaptersAppendEos, boolean adaptersResponseOnly) {
    return new TrainConfig(
        batchSize,
        accumulation,
        recipe,
        learningRate,
        adapterLearningRate,
        warmupRatio,
        weightDecay,
        maxGradNorm,
        adapterMaxGradNorm,
        maxSteps,
        epochs,
        maxSeqLen,
        recompute,
        seed,
        evalRatio,
        evalSteps,
        evalSamples,
        keepBest,
        saveSteps,
        saveTotalLimit,
        tensorBoard,
        dropout,
        Optional.of(appendEos.orElse(adaptersAppendEos)),
        trained,
        gateLossWeight,
        topK,
        device,
        dtype,
        tasks,
        lora,
        Optional.of(responseOnly.orElse(adaptersResponseOnly)),
        gated);
  }

  /**
   * A run's part, or its first of two.
   *
   * @param batchesPerEpoch micro-batches of each pass over the data
   */
  Part first(long batchesPerEpoch, int processes) {
    return new Part(
        0,
        steps(batchesPerEpoch, processes),
        learningRate,
        gated ? adapterLearningRate : learningRate,
        gateLossWeight);
  }

  /**
   * The part that follows the gates': everything together, for the answers' sake alone, since the
   * gates' loss would pull the adapters away from their tasks.
   *
   * @param first the gates'
   * @param before steps that it made
   */
  Part second(Part first, long before) {
    return new Part(before, first.steps(), learningRate / SECOND_OF_GATES, adapterLearningRate, 0);
  }

  /** Whether another part may follow this one. */
  boolean mayGoOn(Part part) {
    return trained == Trained.AUTO && part.before() == 0;
  }

  /** Steps of a run whose data make {@code batchesPerEpoch} micro-batches on each pass. */
  public long steps(long batchesPerEpoch, int processes) {
    return maxSteps.orElseGet(
        () ->
            Math.max(
                1,
                (long)
                    Math.ceil(
                        epochs.orElseThrow()
                            * batchesPerEpoch
                            / ((double) accumulation * processes))));
  }

  /** The settings that a resumed run must share with the run it goes on with. */
  Map<String, String> identity() {
    var result = new LinkedHashMap<String, String>();
    describe().forEach((name, value) -> result.put(name, String.valueOf(value)));
    result.keySet().removeAll(MAY_CHANGE);
    return result;
  }

  /** {@link #describe} without what an adapter looks like. */
  Map<String, Object> describeWithoutAdapter() {
    var result = describe();
    result.keySet().removeAll(List.of("r", "alpha", "use_rslora"));
    result.keySet().removeAll(List.of("target_modules", "layers_to_transform"));
    return result;
  }

  /** The settings as names and values, for records of a run. */
  public Map<String, Object> describe() {
    var result = new LinkedHashMap<String, Object>();
    result.put("batch_size", batchSize);
    result.put("gradient_accumulation_steps", accumulation);
    result.put("learning_rate", learningRate);
    result.put("warmup_ratio", warmupRatio);
    result.put("weight_decay", weightDecay);
    result.put("max_grad_norm", maxGradNorm);
    maxSteps.ifPresent(value -> result.put("max_steps", value));
    epochs.ifPresent(value -> result.put("epochs", value));
    result.put("max_seq_len", maxSeqLen);
    result.put(
        "gradient_checkpointing",
        switch (recompute) {
          case AUTO -> "auto";
          case ALL -> true;
          case NONE -> false;
        });
    result.put("seed", seed);
    result.put("eval_ratio", evalRatio);
    result.put("eval_steps", evalSteps);
    result.put("eval_samples", evalSamples);
    result.put("save_steps", saveSteps);
    result.put("save_total_limit", saveTotalLimit);
    result.put("report_to", tensorBoard ? "tensorboard" : "none");
    result.put("dropout", dropout);
    appendEos.ifPresent(value -> result.put("append_eos", value));
    responseOnly.ifPresent(value -> result.put("response_only", value));
    if (gated) {
      result.put("recipe", recipe);
      result.put("adapter_learning_rate", adapterLearningRate);
      adapterMaxGradNorm.ifPresent(value -> result.put("adapter_max_grad_norm", value));
      result.put("keep", keepBest ? "best" : "last");
      result.put("train", trained.label());
      result.put("gate_loss_weight", gateLossWeight);
      result.put("routing_top_k", topK);
    } else {
      result.put("r", lora.rank());
      result.put("alpha", lora.alpha());
      result.put("use_rslora", lora.rsLora());
      result.put(
          "target_modules",
          Projection.NAMES.stream().filter(lora.targetModules()::contains).toList());
      result.put("layers_to_transform", List.copyOf(new TreeSet<>(lora.layersToTransform())));
    }
    return result;
  }
}
