package org.meteora.moe;

/** Sees which adapters every gate chose. */
@FunctionalInterface
public interface RoutingListener {
  /**
   * Called after every gated linear layer's forward pass.
   *
   * @param layer decoder layer, from 0
   * @param module 0…6: q, k, v, o, gate, up, down
   * @param rows batch rows (left padding included)
   * @param tokens tokens of each row in this pass
   * @param topK adapters for each token
   * @param indices adapters chosen, {@code (rows, tokens, topK)} row-major, best first
   * @param weights their weights, same layout, summing to 1 over topK
   */
  void onRouting(
      int layer, int module, int rows, int tokens, int topK, int[] indices, float[] weights);
}
