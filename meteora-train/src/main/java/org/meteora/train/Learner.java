package org.meteora.train;

import java.util.OptionalInt;
import java.util.function.IntConsumer;
import org.meteora.train.batch.Batch;

/** What is trained: turns batches into losses and gradients. */
public interface Learner {
  /**
   * Sums over one batch.
   *
   * @param languageModel cross-entropies of all labels
   * @param prompt for each row, cross-entropies of the labels that belong to its prompt
   * @param answer for each row, those of its answer
   * @param gate cross-entropies of all gates and positions
   * @param gates how many gates there are; 0 for none
   * @param right for each row, (gate, position) pairs whose first choice is the task's adapter
   * @param dominated for each row, positions where the task's adapter has the largest sum of
   *     routing weights over all gates
   */
  record Sums(
      double languageModel,
      double[] prompt,
      double[] answer,
      double gate,
      long gates,
      float[] right,
      float[] dominated) {}

  /**
   * Adds to the model's tensors the gradients of {@code languageModelWeight · languageModel +
   * gateWeight · gate / gates}.
   *
   * @param seed of dropout
   * @param done may be given the decoder layers, from the last to the first, when their gradients
   *     have got all that this batch adds to them
   */
  Sums learn(
      Batch batch, double languageModelWeight, double gateWeight, long seed, IntConsumer done);

  /** The sums alone, without dropout. */
  Sums evaluate(Batch batch);

  /**
   * The language-model sums of the base model with one adapter on every token, or with none: what
   * gates are measured against.
   *
   * @param adapter its index; empty: the base model alone
   */
  Sums reference(Batch batch, OptionalInt adapter);
}
