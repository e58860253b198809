package org.meteora.moe;

import ai.djl.ndarray.NDArray;

/**
 * Which adapters act on which token, and how strongly.
 *
 * @param indices {@code (tokens, k)} int64, best first
 * @param weights {@code (tokens, k)} float32, summing to 1 over k
 */
public record Routing(NDArray indices, NDArray weights) {
  public int tokens() {
    return (int) indices.getShape().get(0);
  }

  public int topK() {
    return (int) indices.getShape().get(1);
  }
}
