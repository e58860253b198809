package org.meteora.train;

import java.util.ArrayList;
import java.util.Collections;
import java.util.Comparator;
import java.util.List;
import java.util.Optional;
import java.util.OptionalInt;
import java.util.Random;
import java.util.function.Function;
import org.meteora.parallel.Exchange;
import org.meteora.train.batch.Batch;
import org.meteora.train.batch.Batches;
import org.meteora.train.batch.TrainingSample;
import org.meteora.train.listener.Evaluation;
import org.meteora.train.listener.StepReport;
import org.meteora.train.listener.TextLosses;

/**
 * Samples held out, as many of each task, and what a learner makes of them. They are the same at
 * every evaluation.
 */
final class HeldOut {
  private final TrainConfig config;
  private final double gateLossWeight;
  private final Learner learner;
  private final List<String> tasks;
  private final Exchange collective;

  /** Each of one task's samples. */
  private final List<Batch> batches = new ArrayList<>();

  private Optional<TextLosses> oracle = Optional.empty();
  private Optional<TextLosses> base = Optional.empty();

  /**
   * @param gateLossWeight factor of the gates' loss in what is minimised
   * @param samples of all tasks, of which {@code eval_samples} are drawn, at least one of each
   */
  HeldOut(
      TrainConfig config,
      double gateLossWeight,
      Learner learner,
      List<TrainingSample> samples,
      List<String> tasks,
      Exchange collective) {
    this.config = config;
    this.gateLossWeight = gateLossWeight;
    this.learner = learner;
    this.tasks = tasks;
    this.collective = collective;
    int maximum = Math.max(1, config.evalSamples() / tasks.size());
    var drawn = new ArrayList<>(samples);
    Collections.shuffle(drawn, new Random(Batches.mix(config.seed(), samples.size())));
    for (int i = 0; i < tasks.size(); i++) {
      int task = i;
      var own =
          drawn.stream()
              .filter(sample -> sample.task() == task)
              .limit(maximum)
              .sorted(Comparator.comparingInt(TrainingSample::length))
              .toList();
      for (int from = 0; from < own.size(); from += config.batchSize()) {
        int to = Math.min(own.size(), from + config.batchSize());
        batches.add(new Batch(own.subList(from, to), false));
      }
    }
  }

  boolean isEmpty() {
    return batches.isEmpty();
  }

  /**
   * Measures what later evaluations are compared with, before anything is trained: every task's own
   * adapter, and the base model.
   */
  void measureReferences() {
    oracle = Optional.of(reference(batch -> OptionalInt.of(batch.samples().getFirst().task())));
    base = Optional.of(reference(batch -> OptionalInt.empty()));
  }

  private TextLosses reference(Function<Batch, OptionalInt> adapter) {
    return measure(batch -> learner.reference(batch, adapter.apply(batch))).texts();
  }

  Evaluation evaluate() {
    return new Evaluation(measure(learner::evaluate), oracle, base);
  }

  private StepReport.Losses measure(Function<Batch, Learner.Sums> how) {
    var tally = new Tally(config, gateLossWeight, tasks, collective);
    for (int i = collective.rank(); i < batches.size(); i += collective.size()) {
      tally.add(batches.get(i), how.apply(batches.get(i)));
    }
    return tally.losses();
  }
}
