package org.meteora.eval.compare;

import com.fasterxml.jackson.annotation.JsonProperty;
import java.util.List;
import java.util.Map;
import org.meteora.eval.statistics.Interval;

/**
 * Several systems on the same samples. Lists of cells have one entry a column; null where a system
 * has no such result.
 *
 * @param columns the systems; all differences are to the first
 * @param published names of columns of published scores
 * @param warnings what makes the comparison unfair
 * @param differences settings in which the runs differ, unfair or meant
 * @param rows scores by task
 * @param means over tasks, of each score that two or more tasks have
 * @param samples where the systems differ
 */
public record Comparison(
    List<String> columns,
    List<String> published,
    int resamples,
    long seed,
    List<String> warnings,
    List<Setting> differences,
    List<Row> rows,
    List<Row> means,
    List<Samples> samples) {

  /**
   * A setting that is not the same in all runs.
   *
   * @param name a path in the saved results
   * @param tasks the evaluations in which it differs
   * @param values one a column, as text; null where there is no run
   */
  public record Setting(String name, List<String> tasks, List<String> values) {}

  /**
   * One score of one task.
   *
   * @param evaluation the task that was evaluated
   * @param task itself, or a part of a composite task
   * @param samples how many all have, and are compared; of a mean: tasks
   * @param cells one a column
   * @param published one for each column of published scores, or null
   */
  public record Row(
      String evaluation,
      String task,
      String score,
      int samples,
      List<Cell> cells,
      List<Double> published) {
    /** The task; of a composite task, which it is and the part. */
    String label() {
      return task.equals(evaluation) ? task : evaluation + ": " + task;
    }
  }

  /**
   * One system's score.
   *
   * @param score null when there is no answer to score
   * @param interval 95 % bootstrap interval; null when there is none
   * @param change from the first column; null in that column
   */
  public record Cell(Double score, Interval interval, Change change) {}

  /**
   * How a score differs from the first column's, on the same samples.
   *
   * @param difference this less the first
   * @param interval paired 95 % bootstrap interval of the difference
   * @param mcnemar accuracies' two-sided p-value of McNemar's exact test; null for other scores
   * @param onlyFirst samples that the first column alone has right; null for other scores
   * @param onlyThis samples that this column alone has right
   * @param share means': of the first column's mean; null for other scores, and where that may be 0
   */
  public record Change(
      double difference,
      Interval interval,
      Double mcnemar,
      @JsonProperty("only_first") Integer onlyFirst,
      @JsonProperty("only_this") Integer onlyThis,
      Share share) {
    /** Whether the interval leaves zero out. */
    public boolean clear() {
      return interval != null && !interval.contains(0);
    }
  }

  /**
   * One mean over another.
   *
   * @param interval paired 95 % bootstrap interval
   */
  public record Share(double value, Interval interval) {}

  /**
   * Where the systems differ on one evaluation: one is right and another is not; where nothing is
   * right or wrong, their answers differ.
   *
   * @param compared samples that all have
   * @param judged whether answers are right or wrong, rather than more or less alike
   * @param different those in which they differ
   */
  public record Samples(
      String evaluation, int compared, boolean judged, List<Difference> different) {}

  /**
   * One sample.
   *
   * @param index in the first run's data, from 0
   * @param answers one a column; null where there is no run
   * @param right by task: who is right, one a column; only tasks on which they differ
   */
  public record Difference(
      int index,
      String prompt,
      String truth,
      List<String> answers,
      Map<String, List<Boolean>> right) {}
}
