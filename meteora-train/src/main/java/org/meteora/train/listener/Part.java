package org.meteora.train.listener;

import java.util.LinkedHashMap;
import java.util.Map;

/**
 * A part of a run: steps with one schedule, which train the same parameters. Most runs have one.
 *
 * @param before steps made before it
 * @param rate peak rate of the gates, or of an adapter trained alone
 * @param adapterRate peak rate of A and B under gates
 * @param gateLossWeight factor of the gates' loss
 */
public record Part(
    long before, long steps, double rate, double adapterRate, double gateLossWeight) {
  /** The number of its last step. */
  public long end() {
    return before + steps;
  }

  /** The names of the settings, and what they are in this part. */
  Map<String, Object> describe() {
    var result = new LinkedHashMap<String, Object>();
    result.put("steps", steps);
    result.put("learning_rate", rate);
    result.put("adapter_learning_rate", adapterRate);
    result.put("gate_loss_weight", gateLossWeight);
    return result;
  }
}
