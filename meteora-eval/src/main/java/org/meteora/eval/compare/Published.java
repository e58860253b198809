package org.meteora.eval.compare;

import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Scores that the MeteoRA paper gives (arXiv 2405.13053) for composite_10 with Llama 3 8B, by task
 * and score. Its BLEU looks at one answer alone: it stands beside our {@code bleu_as_published}.
 *
 * @param name of the column
 */
record Published(String name, Map<String, Map<String, Double>> scores) {
  /** The evaluation that these are scores of. */
  static final String TASK = "composite_10";

  /** BLEU as the original evaluation computes it. */
  static final String BLEU = "BLEU as published";

  static final List<Published> ALL =
      List.of(
          of(
              "paper: MeteoRA",
              new double[] {0.500, 0.703, 0.625, 0.773, 0.422, 0.461, 0.266},
              new double[] {3.23, 14.78, 0.00, 17.37},
              new double[][] {{0.225, 0.051, 0.210}, {0.257, 0.075, 0.241}, {0.233, 0.052, 0.176}}),
          of(
              "paper: LoRA-B",
              new double[] {0.453, 0.688, 0.672, 0.727, 0.078, 0.211, 0.117},
              new double[] {0.00, 14.54, 8.17, 12.14},
              new double[][] {
                {0.106, 0.025, 0.099}, {0.187, 0.075, 0.167}, {0.189, 0.030, 0.103}
              }));

  private static Published of(String name, double[] accuracy, double[] bleu, double[][] rouge) {
    var result = new LinkedHashMap<String, Map<String, Double>>();
    fill(
        result,
        "Accuracy",
        accuracy,
        "logical_deduction",
        "question_selection",
        "abstract_narrative_understanding",
        "goal_step_wikihow",
        "winowhy",
        "strategyqa",
        "disfl_qa");
    fill(result, BLEU, bleu, "strategyqa", "news_commentary_de", "alpaca", "linguistics_puzzles");
    var names = List.of("ROUGE-1", "ROUGE-2", "ROUGE-L");
    for (int i = 0; i < names.size(); i++) {
      int each = i;
      fill(
          result,
          names.get(i),
          java.util.Arrays.stream(rouge).mapToDouble(task -> task[each]).toArray(),
          "strategyqa",
          "alpaca",
          "linguistics_puzzles");
    }
    return new Published(name, result);
  }

  private static void fill(
      Map<String, Map<String, Double>> scores, String score, double[] values, String... tasks) {
    for (int i = 0; i < tasks.length; i++) {
      scores.computeIfAbsent(tasks[i], task -> new LinkedHashMap<>()).put(score, values[i]);
    }
  }
}
