package org.meteora.train;

import static java.util.function.Predicate.not;

import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.meteora.UserException;
import org.meteora.checkpoint.TrainableModel;
import org.meteora.data.config.Nearest;
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
 * @param learningRate the schedule's peak: the gates', or that of an adapter trained alone
 * @param adapterLearningRate the peak of A and B under gates
 * @param warmupRatio share of the steps in which the rate rises
 * @param weightDecay AdamW's decoupled decay
 * @param maxGradNorm global L2 norm that gradients are clipped to; 0: no clipping
 * @param adapterMaxGradNorm the same for A and B under gates, whose norm is then taken apart from
 *     the gates'; empty: one norm over both
 * @param maxSteps optimiser steps; empty when {@code epochs} is given
 * @param epochs passes over the data; empty when {@code maxSteps} is given
 * @param recompute which layers keep only their input and are computed again in the backward pass:
 *     as many as memory asks for, all, or none
 * @param seed of splits, orders, first values and dropout
 * @param evalRatio share of the samples held out
 * @param evalSteps steps from one evaluation to the next
 * @param evalSamples samples of an evaluation, as many of each task
 * @param keepBest the result is the evaluation's with the lowest answer loss, not the last step's
 * @param saveSteps steps from one checkpoint to the next
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
 * @param values all of these by the names of the settings, as they are recorded
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
    boolean gated,
    Map<String, Object> values) {
  /**
   * A setting that both a file and options may give.
   *
   * @param standard what it is otherwise by the recipe that keeps the adapters' knowledge; null:
   *     nothing
   * @param paper the same by the original's, which {@code train-lora} has too
   */
  private record Setting(String name, Object standard, Object paper) {
    Setting(String name, Object both) {
      this(name, both, both);
    }
  }

  private static final List<Setting> COMMON =
      List.of(
          new Setting("batch_size", 16, 4),
          new Setting("gradient_accumulation_steps", 1, 2),
          new Setting("learning_rate", 2e-2, 5e-4),
          new Setting("warmup_ratio", 0.05, 0.005),
          new Setting("weight_decay", 0, 0.01),
          new Setting("max_grad_norm", 0, 0.3),
          new Setting("max_steps", null),
          new Setting("epochs", null),
          new Setting("max_seq_len", 4096),
          new Setting("gradient_checkpointing", "auto"),
          new Setting("seed", 42),
          new Setting("eval_ratio", 0.1),
          new Setting("eval_steps", 100, 500),
          new Setting("eval_samples", 256),
          new Setting("save_steps", 600, 3000),
          new Setting("save_total_limit", 3),
          new Setting("report_to", "none"),
          new Setting("dropout", 0.1),
          new Setting("append_eos", null, false),
          new Setting("device", null),
          new Setting("dtype", null));

  private static final List<Setting> METEORA =
      List.of(
          new Setting("response_only", null, false),
          new Setting("recipe", "default"),
          new Setting("adapter_learning_rate", null),
          new Setting("adapter_max_grad_norm", 1, null),
          new Setting("keep", "best", "last"),
          new Setting("train", "auto", "all"),
          new Setting("gate_loss_weight", 10, 50),
          new Setting("routing_top_k", RoutingSettings.DEFAULT.topK()),
          new Setting("tasks", null));

  private static final List<Setting> LORA =
      List.of(
          new Setting("response_only", null),
          new Setting("r", 8),
          new Setting("alpha", 16),
          new Setting("use_rslora", false),
          new Setting("target_modules", null),
          new Setting("layers_to_transform", null));

  /** All keys of gates' training, but the section for adapters. */
  public static final Set<String> METEORA_KEYS = keys(METEORA);

  /** All keys of an adapter's training. */
  public static final Set<String> LORA_KEYS = keys(LORA);

  /** What is told elsewhere: of the device that was found, and of all tasks. */
  private static final Set<String> NOT_DESCRIBED = Set.of("device", "dtype", "tasks");

  private static final List<String> ALL_LINEAR = List.of("all-linear");

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
    AUTO
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
    return read(merge(own(section), options), METEORA, false);
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

  private static Map<String, Object> own(Map<String, Object> section) {
    var result = new LinkedHashMap<>(section);
    result.remove("lora");
    var known = keys(METEORA);
    known.add("lora");
    new Settings("config section train", result, known);
    return result;
  }

  /** The section's keys that are not for gates alone. */
  private static Map<String, Object> common(Map<String, Object> section) {
    var result = own(section);
    METEORA.forEach(each -> result.remove(each.name()));
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
    new Settings("config section train.lora", result, LORA_KEYS);
    return result;
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

  private static Set<String> keys(List<Setting> more) {
    return Stream.of(COMMON, more)
        .flatMap(List::stream)
        .map(Setting::name)
        .collect(Collectors.toCollection(LinkedHashSet::new));
  }

  private static TrainConfig read(Map<String, Object> given, List<Setting> more, boolean lora) {
    return read(new Settings("training settings", given, keys(more)), lora);
  }

  private static TrainConfig read(Settings s, boolean lora) {
    s.over("recipe", "default");
    var recipe = s.choice("recipe", "default", "paper");
    boolean paper = lora || recipe.equals("paper");
    if (lora) {
      s.over("response_only", true);
    }
    Stream.of(COMMON, METEORA, LORA)
        .flatMap(List::stream)
        .forEach(each -> s.over(each.name(), paper ? each.paper() : each.standard()));
    if (s.has("max_steps") && s.has("epochs")) {
      throw new UserException("training settings: give max_steps or epochs, not both");
    }
    if (lora && !s.has("max_steps")) {
      s.over("epochs", DEFAULT_LORA_EPOCHS);
    } else if (!s.has("epochs")) {
      s.over("max_steps", paper ? 15_000 : 600);
    }
    double rate = s.number("learning_rate", 0, 1e3);
    var targets = targets(s);
    double dropout = s.number("dropout", 0, 0.99);
    var trained =
        Trained.valueOf(s.choice("train", "auto", "gates", "all").toUpperCase(Locale.ROOT));
    if (s.has("dtype")) {
      s.choice("dtype", "f32", "float32", "bf16", "bfloat16");
    }
    s.over("adapter_learning_rate", trained == Trained.AUTO ? SECOND_RATE : paper ? rate : 1e-4);
    return new TrainConfig(
        s.integer("batch_size", 1),
        s.integer("gradient_accumulation_steps", 1),
        recipe,
        rate,
        s.number("adapter_learning_rate", 0, 1e3),
        s.number("warmup_ratio", 0, 1),
        s.number("weight_decay", 0, 1),
        s.number("max_grad_norm", 0, 1e12),
        s.ifGiven("adapter_max_grad_norm", key -> s.number(key, 0, 1e12)),
        s.ifGiven("max_steps", key -> s.whole(key, 1)),
        s.ifGiven("epochs", key -> s.number(key, 1e-6, 1e9)),
        s.integer("max_seq_len", 2),
        recompute(s),
        s.whole("seed", Long.MIN_VALUE),
        s.number("eval_ratio", 0, 0.9),
        s.whole("eval_steps", 1),
        s.integer("eval_samples", 1),
        s.choice("keep", "best", "last").equals("best"),
        s.whole("save_steps", 1),
        s.integer("save_total_limit", 1),
        s.choice("report_to", "none", "tensorboard").equals("tensorboard"),
        dropout,
        s.ifGiven("append_eos", s::flag),
        trained,
        s.number("gate_loss_weight", 0, 1e9),
        s.integer("routing_top_k", 1),
        s.text("device"),
        s.text("dtype"),
        s.list("tasks"),
        LoraConfig.of(
            s.integer("r", 1),
            s.number("alpha", 1e-6, 1e6),
            dropout,
            targets,
            s.flag("use_rslora"),
            s.integers("layers_to_transform")),
        s.ifGiven("response_only", s::flag),
        !lora,
        s.values());
  }

  private static Recompute recompute(Settings s) {
    if (s.choice("gradient_checkpointing", "auto", "true", "false").equals("auto")) {
      return Recompute.AUTO;
    }
    return s.flag("gradient_checkpointing") ? Recompute.ALL : Recompute.NONE;
  }

  private static Set<String> targets(Settings s) {
    var given = s.list("target_modules");
    for (var target : given) {
      if (!Projection.NAMES.contains(target) && !given.equals(ALL_LINEAR)) {
        throw new UserException(
            "target_modules: unknown module \"%s\"%s",
            target,
            Nearest.to(target, Projection.NAMES)
                .map(n -> ", did you mean \"" + n + "\"?")
                .orElse("; choose from " + String.join(", ", Projection.NAMES)));
      }
    }
    boolean all = given.isEmpty() || given.equals(ALL_LINEAR);
    var targets = Projection.NAMES.stream().filter(name -> all || given.contains(name)).toList();
    s.put("target_modules", targets);
    return Set.copyOf(targets);
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
    var decided = new LinkedHashMap<>(values);
    decided.put("append_eos", appendEos.orElse(adaptersAppendEos));
    decided.put("response_only", responseOnly.orElse(adaptersResponseOnly));
    return read(new Settings("training settings", decided, decided.keySet()), !gated);
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

  boolean mayGoOn(Part part) {
    return trained == Trained.AUTO && part.before() == 0;
  }

  /** Steps of a run whose data make {@code batchesPerEpoch} micro-batches on each pass. */
  public long steps(long batchesPerEpoch, int processes) {
    if (maxSteps.isPresent()) {
      return maxSteps.get();
    }
    double batches = epochs.orElseThrow() * batchesPerEpoch;
    return Math.max(1, (long) Math.ceil(batches / ((double) accumulation * processes)));
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
    LORA.stream().map(Setting::name).filter(not("response_only"::equals)).forEach(result::remove);
    return result;
  }

  /** The settings as names and values, for records of a run. */
  public Map<String, Object> describe() {
    var result = new LinkedHashMap<String, Object>();
    for (var key : gated ? METEORA_KEYS : LORA_KEYS) {
      if (values.containsKey(key) && !NOT_DESCRIBED.contains(key)) {
        result.put(key, values.get(key));
      }
    }
    return result;
  }
}
