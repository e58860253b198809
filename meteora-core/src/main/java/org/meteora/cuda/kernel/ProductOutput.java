package org.meteora.cuda.kernel;

/**
 * What a {@link MatrixVector} product left for the kernel behind it; mirrors the struct of this
 * name in {@code routing.cuh}.
 *
 * @param y float32 (slots, rows, ld)
 * @param clear float32, what a later product will add to; or 0
 * @param invTemperature float32, 1 / T
 * @param clearCount floats of {@code clear}
 * @param gateTilesDone uint32, how many of the gates' tiles y has; or 0 when they do not come first
 * @param x (rows, k), the product's input, for {@link org.meteora.nn.Scores#STANDARDIZED}; 0 where
 *     {@link MatrixVector#leavesSpread}
 * @param sumsq as {@link MatrixVector#launch} takes it, and so {@code partials} and {@code eps}
 * @param choice int32 (rows, topK), the adapters, for {@link org.meteora.nn.Scores#GIVEN}; or 0
 * @param choiceWeights float32, as {@code choice}
 * @param choicesDone uint32, how many choices of all linears' rows {@link
 *     DecodeLayerKernels#routeZ} has left in their indices and weights; or 0 where it leaves none
 * @param choices how many those are in the end
 */
public record ProductOutput(
    long y,
    long clear,
    long invTemperature,
    long clearCount,
    long gateTilesDone,
    int slots,
    int ld,
    int rows,
    int gateTiles,
    long x,
    long sumsq,
    int k,
    int partials,
    float eps,
    long choice,
    long choiceWeights,
    long choicesDone,
    int choices) {
  /** Without gates that come first, an RMSNorm, a choice that is given, and what to clear. */
  static ProductOutput of(long y, long invTemperature, int slots, int ld, int rows, long x, int k) {
    return new ProductOutput(
        y, 0, invTemperature, 0, 0, slots, ld, rows, 0, x, 0, k, 0, 0, 0, 0, 0, 0);
  }
}
