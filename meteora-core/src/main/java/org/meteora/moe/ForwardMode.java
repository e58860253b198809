package org.meteora.moe;

import java.util.Locale;

/** How the adapters' contribution is computed; all modes give the same result. */
public enum ForwardMode {
  /** The best for the device and the number of tokens, from measurements. */
  AUTO,
  /** The plain formula: every adapter on every token, routing in its training form. */
  REFERENCE,
  /** A loop over adapters, each on its own tokens. */
  ALL,
  /** The same loop with its adapters spread over several CUDA streams; as it is on the CPU. */
  PARALLEL,
  /** {@code batch} v1: the chosen adapters' A and B are gathered, two batched matmuls. */
  GATHER,
  /** {@code batch} v2: all ranks in one matmul, masked by the routing weights. */
  MASKED,
  /** Fused CUDA kernels at inference; as {@link #AUTO} elsewhere, with a line in the log. */
  FUSED,
  /**
   * What comes of a sequence is the same, to the bit, however many others are beside it: as {@link
   * #AUTO} but for that, in float32 on the CPU and by kernels of our own on a GPU.
   */
  INVARIANT;

  /** As logs and reports have it: in lower case. */
  public String label() {
    return name().toLowerCase(Locale.ROOT);
  }
}
