package org.meteora.moe;

import ai.djl.ndarray.NDArray;

/**
 * One way to compute the sum in the formula of {@link GatedLinear} with tensor operations: {@code Σ
 * weight_i · s_i · (x A_iᵀ) B_iᵀ} over the chosen adapters. Runs on any device, recorded for
 * backward or not.
 */
@FunctionalInterface
public interface ForwardStrategy {
  /**
   * @param x {@code (tokens, in)}, dropout already applied
   * @param bank the adapters and what was derived from them
   * @param routing of these tokens
   * @param training whether gradients to A and B are wanted
   * @return {@code (tokens, out)}, in the dtype of {@code x}
   */
  NDArray contribution(NDArray x, BankLayout bank, Routing routing, boolean training);
}
