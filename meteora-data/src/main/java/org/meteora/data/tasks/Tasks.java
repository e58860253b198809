package org.meteora.data.tasks;

import static org.meteora.io.Jsonl.text;
import static org.meteora.io.Jsonl.texts;

import com.fasterxml.jackson.databind.JsonNode;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalInt;
import java.util.function.Supplier;
import java.util.function.UnaryOperator;
import org.meteora.UserException;
import org.meteora.data.Sample;
import org.meteora.data.config.Nearest;
import org.meteora.data.tasks.Task.Prompt;

/**
 * The catalogue of tasks: source, prompt, normaliser and metrics of each. A task is added here, and
 * in no other code but tests: whether its files are Parquet, JSON lines or JSON is told by their
 * names' endings ({@link org.meteora.data.source.SourceLocator}).
 *
 * <p>A metric's key is the name of its class in lower case: {@code exact_accuracy} is {@code
 * ExactAccuracy}.
 */
public final class Tasks {
  private static final String EXACT = "exact_accuracy";
  private static final String FUZZY = "fuzzy_accuracy";
  private static final String BLEU = "bleu";
  private static final String ROUGE = "rouge";

  /** Tasks that are scored by text are cut to this many samples in an evaluation. */
  private static final int LONG_TASK = 1000;

  private static final Map<String, Task> ALL = new LinkedHashMap<>();

  static {
    bigBench("abstract_narrative_understanding", Tasks::choices, FUZZY);
    add(
        "alpaca",
        Source.hub("alpaca", "tatsu-lab/alpaca", ""),
        // the newline is there without an input too, as in the published data
        (record, where) ->
            sample(
                text(record, "instruction", where) + "\n" + record.path("input").asText(""),
                text(record, "output", where)),
        LONG_TASK,
        BLEU,
        ROUGE);
    add(
        "cnn_dailymail",
        Source.hub("cnn_dailymail", "abisee/cnn_dailymail", "3.0.0"),
        (record, where) ->
            sample(
                "Generate a summarization of the news article.\n" + text(record, "article", where),
                text(record, "highlights", where)),
        LONG_TASK,
        BLEU,
        ROUGE);
    bigBench("contextual_parametric_knowledge_conflicts", Tasks::inputs, FUZZY);
    bigBench("cs_algorithms", Tasks::inputs, EXACT);
    bigBench("disfl_qa", Tasks::inputs, FUZZY);
    bigBench("elementary_math_qa", Tasks::inputs, EXACT);
    bigBench("epistemic_reasoning", Tasks::inputs, EXACT);
    add(
        new Task(
            "formal_fallacies_syllogisms_negation",
            Source.bigBench("formal_fallacies_syllogisms_negation"),
            Tasks::inputs,
            // "invalid" holds "valid", so it is looked for first
            answer ->
                answer.contains("invalid")
                    ? "invalid"
                    : answer.contains("valid") ? "valid" : "illegal answer",
            List.of(EXACT),
            OptionalInt.empty()));
    bigBench("goal_step_wikihow", Tasks::inputs, FUZZY);
    add(
        "gsm8k",
        Source.hub("gsm8k", "openai/gsm8k", "main"),
        (record, where) -> sample(text(record, "question", where), text(record, "answer", where)),
        0,
        "gsm8k_accuracy");
    bigBench("language_identification", Tasks::inputs, FUZZY);
    bigBench("linguistics_puzzles", Tasks::inputs, BLEU, ROUGE);
    bigBench(
        "logical_deduction",
        (record, where) ->
            sample(
                text(record, "inputs", where)
                    + " Which choice is correct?"
                    + choiceLines(record, where),
                target(record, where)),
        FUZZY);
    news("news_commentary_de", "de-en", "de", "Den folgenden Text ins Englische übersetzen.\n");
    news("news_commentary_es", "en-es", "es", "Traducir las siguientes frases al inglés.\n");
    news("news_commentary_it", "en-it", "it", "Tradurre le seguenti frasi in inglese.\n");
    bigBench("object_counting", Tasks::inputs, FUZZY);
    bigBench("paragraph_segmentation", Tasks::inputs, EXACT);
    bigBench("play_dialog_same_or_different", Tasks::inputs, FUZZY);
    bigBench("question_selection", Tasks::inputs, FUZZY);
    bigBench("reasoning_about_colored_objects", Tasks::inputs, FUZZY);
    bigBench("strategyqa", Tasks::inputs, "yes_no_accuracy", BLEU, ROUGE);
    add("topical_chat", Source.bigBench("topical_chat"), Tasks::inputs, LONG_TASK, BLEU, ROUGE);
    bigBench("tracking_shuffled_objects", Tasks::choices, EXACT);
    bigBench("unit_conversion", Tasks::choices, EXACT);
    bigBench("vitaminc_fact_verification", Tasks::inputs, FUZZY);
    bigBench("winowhy", Tasks::inputs, EXACT);
  }

  private Tasks() {}

  private static void add(Task task) {
    ALL.put(task.name(), task);
  }

  private static void add(
      String name, Source source, Prompt prompt, int evalLimit, String... metrics) {
    add(
        new Task(
            name,
            source,
            prompt,
            UnaryOperator.identity(),
            List.of(metrics),
            evalLimit == 0 ? OptionalInt.empty() : OptionalInt.of(evalLimit)));
  }

  private static void bigBench(String name, Prompt prompt, String... metrics) {
    add(name, Source.bigBench(name), prompt, 0, metrics);
  }

  private static void news(String name, String pair, String language, String instruction) {
    add(
        name,
        Source.hub(name, "Helsinki-NLP/news_commentary", pair),
        (record, where) -> {
          var translation = record.path("translation");
          return sample(
              instruction + text(translation, language, where), text(translation, "en", where));
        },
        LONG_TASK,
        BLEU);
  }

  /** BIG-bench: the input as it is. */
  private static Sample inputs(JsonNode record, String where) {
    return sample(text(record, "inputs", where), target(record, where));
  }

  /** BIG-bench: the input, then a line for each choice. */
  private static Sample choices(JsonNode record, String where) {
    return sample(
        text(record, "inputs", where) + choiceLines(record, where), target(record, where));
  }

  private static String choiceLines(JsonNode record, String where) {
    if (!record.path("multiple_choice_targets").isArray()) {
      throw new UserException(where + ": \"multiple_choice_targets\" must be a list");
    }
    var lines = new StringBuilder("\n");
    for (var choice : texts(record, "multiple_choice_targets", where)) {
      lines.append("choice: ").append(choice).append('\n');
    }
    return lines.toString();
  }

  private static String target(JsonNode record, String where) {
    var targets = record.path("targets");
    if (!targets.isArray() || targets.isEmpty() || !targets.get(0).isTextual()) {
      throw new UserException(where + ": \"targets\" must be a list with at least one text");
    }
    return targets.get(0).textValue();
  }

  private static Sample sample(String text, String response) {
    return new Sample("[INST] " + text + " [/INST]\n", response);
  }

  /**
   * All tasks in the order they are written above, which is to be the alphabetical one: that of
   * adapters in published checkpoints.
   */
  public static Collection<Task> all() {
    return ALL.values();
  }

  public static List<String> names() {
    return List.copyOf(ALL.keySet());
  }

  /** The task of this name, if it is one of the 28. */
  public static Optional<Task> find(String name) {
    return Optional.ofNullable(ALL.get(name));
  }

  /**
   * A task of BIG-bench that is not one of the 28: the input as it is.
   *
   * @param scores BIG-bench's names of its scores, the preferred one first; those that cannot be
   *     computed from an answer alone are left out, and where none is left answers must be equal
   */
  public static Task ofBigBench(String name, List<String> scores) {
    var metrics = new LinkedHashSet<String>();
    for (var score : scores) {
      switch (score) {
        case "exact_str_match", "multiple_choice_grade" -> metrics.add(EXACT);
        case "bleu" -> metrics.add(BLEU);
        case "rouge", "rouge1", "rouge2", "rougeL", "rougeLsum" -> metrics.add(ROUGE);
        default -> {}
      }
    }
    return new Task(
        name,
        Source.bigBench(name),
        Tasks::inputs,
        UnaryOperator.identity(),
        metrics.isEmpty() ? List.of(EXACT) : List.copyOf(metrics),
        OptionalInt.empty());
  }

  /**
   * Keys of a task's metrics: of one of the 28, else its own; without any, answers must be equal.
   *
   * @param own what is known of a task beyond the 28, as by {@link MetricsFile}
   */
  public static List<String> metrics(String name, Supplier<Optional<List<String>>> own) {
    return find(name).map(Task::metrics).or(own).orElse(List.of(EXACT));
  }

  /** The task of this name; a {@link UserException} that names the nearest where there is none. */
  public static Task get(String name) {
    return find(name).orElseThrow(() -> unknown(name, names()));
  }

  /** The refusal of a name, naming the nearest of those there are, or what lists them. */
  public static UserException unknown(String name, Collection<String> known) {
    var hint = Nearest.hint(name, known);
    return new UserException(
        "unknown task \"%s\"%s"
            .formatted(name, hint.isEmpty() ? "; \"create-dataset --list\" shows them" : hint));
  }
}
