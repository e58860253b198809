package org.meteora.cuda.kernel;

/**
 * One gated linear inside a {@link ProductOutput}; mirrors the struct of this name in {@code
 * routing.cuh}.
 *
 * @param b Bᵀ (Σr, out); 0 without adapters
 * @param bias (out), or 0
 * @param offsets int32 (n + 1), rows of b, of n adapters
 * @param scales float32 (n)
 * @param indices int32 (rows, topK), receives the choice; or 0
 * @param weights float32 (rows, topK), receives its weights; or 0
 * @param outAt where the outputs lie in a row of y; likewise {@code gateAt} and {@code zAt}
 * @param vectors four outputs can be read at once, of y and of b
 */
public record RoutedLinear(
    long b,
    long bias,
    long offsets,
    long scales,
    long indices,
    long weights,
    int outAt,
    int gateAt,
    int zAt,
    int n,
    int out,
    boolean vectors) {}
