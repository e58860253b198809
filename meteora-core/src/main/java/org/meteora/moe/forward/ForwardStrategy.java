package org.meteora.moe.forward;

import ai.djl.ndarray.NDArray;
import org.meteora.moe.BankLayout;
import org.meteora.moe.Routing;

/**
 * One way to compute the adapters' contribution to a linear layer: {@code Σ weight_i · s_i · (x
 * A_iᵀ) B_iᵀ} over the chosen adapters.
 */
public sealed interface ForwardStrategy
    permits ReferenceForward, LoopForward, GatherForward, MaskedForward {
  /**
   * @param x {@code (tokens, in)}, dropout already applied
   * @param bank the adapters and what was derived from them
   * @param routing of these tokens
   * @return {@code (tokens, out)}, in the dtype of {@code x}
   */
  NDArray contribution(NDArray x, BankLayout bank, Routing routing);
}
