package org.meteora.train.listener;

import java.util.Map;

/**
 * What one optimiser step did, over all processes.
 *
 * @param step its number, from 1
 * @param gradientNorm the global norm before clipping
 * @param losses of the step's batches, before the update
 * @param tokensPerSecond tokens (without padding) learned from in a second, averaged over the last
 *     steps
 * @param padding share of the step's positions that were padding
 * @param memoryBytes in use: of the GPU, or resident on the CPU
 */
public record StepReport(
    long step,
    double learningRate,
    double gradientNorm,
    Losses losses,
    double seconds,
    double tokensPerSecond,
    double padding,
    long memoryBytes) {

  /**
   * Means over batches.
   *
   * @param languageModel cross-entropy of the next token
   * @param gate cross-entropy of the gates; NaN without gates
   * @param total what is minimised
   * @param gateAccuracy how often a gate's first choice is the task's adapter; NaN without gates
   * @param gateAccuracyByTask the same for each task that occurred
   * @param dominantAccuracy how often the adapter that dominates a token, the one with the largest
   *     sum of routing weights over all gates, is the task's; NaN without gates
   * @param dominantAccuracyByTask the same for each task that occurred
   * @param tokens that were not padding
   * @param texts the language-model loss of prompts and answers apart
   */
  public record Losses(
      double languageModel,
      double gate,
      double total,
      double gateAccuracy,
      Map<String, Double> gateAccuracyByTask,
      double dominantAccuracy,
      Map<String, Double> dominantAccuracyByTask,
      long tokens,
      TextLosses texts) {}
}
