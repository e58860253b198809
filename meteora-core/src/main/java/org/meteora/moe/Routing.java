package org.meteora.moe;

import ai.djl.ndarray.NDArray;
import java.util.Arrays;

/**
 * Which adapters act on which token, and how strongly, on the device.
 *
 * @param indices {@code (tokens, k)} int64, best first
 * @param weights {@code (tokens, k)} float32, summing to 1 over k
 */
public record Routing(NDArray indices, NDArray weights) {
  /** Tokens that it is of. */
  public int tokens() {
    return (int) indices.getShape().get(0);
  }

  /** Adapters a token. */
  public int topK() {
    return (int) indices.getShape().get(1);
  }

  /** The same in host memory; waits for the device. */
  public Choice download() {
    var chosen = Arrays.stream(indices.toLongArray()).mapToInt(i -> (int) i).toArray();
    return new Choice(tokens(), topK(), chosen, weights.toFloatArray());
  }
}
