package org.meteora.moe;

import ai.djl.ndarray.NDArray;

/**
 * Weighs all N adapters for a whole decoder layer, {@code softmax(h Wᵀ / T) + b}, by what the
 * layer's q, k and v read.
 *
 * @param weight W {@code (N, hidden)} in the model's dtype
 * @param bias b {@code (N)} float32
 */
public record LayerGate(NDArray weight, NDArray bias) {}
