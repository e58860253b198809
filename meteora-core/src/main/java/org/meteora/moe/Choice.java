package org.meteora.moe;

/**
 * Which adapters act on which token, in host memory.
 *
 * @param indices {@code (tokens, k)} row-major, best first
 * @param weights as {@code indices}, summing to 1 over k
 */
public record Choice(int tokens, int topK, int[] indices, float[] weights) {
  /** Room for the choice of so many tokens. */
  public Choice(int tokens, int topK) {
    this(tokens, topK, new int[tokens * topK], new float[tokens * topK]);
  }
}
