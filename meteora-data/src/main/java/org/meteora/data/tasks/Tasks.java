package org.meteora.data.tasks;

import static org.meteora.data.tasks.Metric.ACCURACY_EXACT;
import static org.meteora.data.tasks.Metric.ACCURACY_FUZZY;
import static org.meteora.data.tasks.Metric.BLEU;
import static org.meteora.data.tasks.Metric.GSM8K_ACCURACY;
import static org.meteora.data.tasks.Metric.ROUGE;
import static org.meteora.data.tasks.Metric.YES_NO_ACCURACY;

import java.util.Collection;
import java.util.Collections;
import java.util.EnumSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalInt;
import org.meteora.UserException;
import org.meteora.data.config.Nearest;
import org.meteora.data.tasks.Task.PromptForm;
import org.meteora.data.tasks.Task.Source;

/** The catalogue of tasks: one line a task, the one place to add one. */
public final class Tasks {
  private static final Map<String, Task> ALL = new LinkedHashMap<>();

  static {
    bigbench("abstract_narrative_understanding", PromptForm.CHOICES, ACCURACY_FUZZY);
    other("alpaca", Source.ALPACA, 1000, BLEU, ROUGE);
    other("cnn_dailymail", Source.CNN_DAILYMAIL, 1000, BLEU, ROUGE);
    bigbench("contextual_parametric_knowledge_conflicts", PromptForm.INPUTS, ACCURACY_FUZZY);
    bigbench("cs_algorithms", PromptForm.INPUTS, ACCURACY_EXACT);
    bigbench("disfl_qa", PromptForm.INPUTS, ACCURACY_FUZZY);
    bigbench("elementary_math_qa", PromptForm.INPUTS, ACCURACY_EXACT);
    bigbench("epistemic_reasoning", PromptForm.INPUTS, ACCURACY_EXACT);
    bigbench("formal_fallacies_syllogisms_negation", PromptForm.INPUTS, ACCURACY_EXACT);
    bigbench("goal_step_wikihow", PromptForm.INPUTS, ACCURACY_FUZZY);
    other("gsm8k", Source.GSM8K, 0, GSM8K_ACCURACY);
    bigbench("language_identification", PromptForm.INPUTS, ACCURACY_FUZZY);
    bigbench("linguistics_puzzles", PromptForm.INPUTS, BLEU, ROUGE);
    bigbench("logical_deduction", PromptForm.QUESTION_AND_CHOICES, ACCURACY_FUZZY);
    other("news_commentary_de", Source.NEWS_COMMENTARY_DE, 1000, BLEU);
    other("news_commentary_es", Source.NEWS_COMMENTARY_ES, 1000, BLEU);
    other("news_commentary_it", Source.NEWS_COMMENTARY_IT, 1000, BLEU);
    bigbench("object_counting", PromptForm.INPUTS, ACCURACY_FUZZY);
    bigbench("paragraph_segmentation", PromptForm.INPUTS, ACCURACY_EXACT);
    bigbench("play_dialog_same_or_different", PromptForm.INPUTS, ACCURACY_FUZZY);
    bigbench("question_selection", PromptForm.INPUTS, ACCURACY_FUZZY);
    bigbench("reasoning_about_colored_objects", PromptForm.INPUTS, ACCURACY_FUZZY);
    bigbench("strategyqa", PromptForm.INPUTS, BLEU, ROUGE, YES_NO_ACCURACY);
    add("topical_chat", Source.BIGBENCH, PromptForm.INPUTS, OptionalInt.of(1000), BLEU, ROUGE);
    bigbench("tracking_shuffled_objects", PromptForm.CHOICES, ACCURACY_EXACT);
    bigbench("unit_conversion", PromptForm.CHOICES, ACCURACY_EXACT);
    bigbench("vitaminc_fact_verification", PromptForm.INPUTS, ACCURACY_FUZZY);
    bigbench("winowhy", PromptForm.INPUTS, ACCURACY_EXACT);
  }

  private Tasks() {}

  private static void bigbench(String name, PromptForm form, Metric... metrics) {
    add(name, Source.BIGBENCH, form, OptionalInt.empty(), metrics);
  }

  private static void other(String name, Source source, int limit, Metric... metrics) {
    add(
        name,
        source,
        PromptForm.OWN,
        limit == 0 ? OptionalInt.empty() : OptionalInt.of(limit),
        metrics);
  }

  private static void add(
      String name, Source source, PromptForm form, OptionalInt limit, Metric... metrics) {
    var set = EnumSet.noneOf(Metric.class);
    set.addAll(List.of(metrics));
    ALL.put(name, new Task(name, source, form, Collections.unmodifiableSet(set), limit));
  }

  /** All tasks in alphabetical order, which is the order of adapters in published checkpoints. */
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
   * @throws UserException naming the nearest task
   */
  public static Task get(String name) {
    return find(name)
        .orElseThrow(
            () -> new UserException("unknown task \"" + name + "\"" + Nearest.hint(name, names())));
  }
}
