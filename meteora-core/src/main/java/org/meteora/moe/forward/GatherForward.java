package org.meteora.moe.forward;

import ai.djl.ndarray.NDArray;
import org.meteora.moe.BankLayout;
import org.meteora.moe.ForwardStrategy;
import org.meteora.moe.Routing;
import org.meteora.tensor.Ops;

/**
 * {@code batch} v1: gathers the chosen adapters' rows of A and of Bᵀ for every token, then two
 * batched matmuls. Reads only what was chosen: the best for few tokens. Unequal ranks are padded
 * with rows whose coefficient is 0.
 */
public final class GatherForward implements ForwardStrategy {
  @Override
  public NDArray contribution(NDArray x, BankLayout bank, Routing routing, boolean training) {
    var dtype = Ops.dtype(x);
    int tokens = routing.tokens();
    var rows = Ops.embedding(bank.rows(), routing.indices()).reshape(tokens, -1); // (tokens, k·r)
    var coefficients =
        Ops.embedding(bank.rowScales(), routing.indices())
            .mul(routing.weights().expandDims(2))
            .reshape(tokens, -1, 1);
    var a = Ops.embedding(bank.loraA(), rows); // (tokens, k·r, in)
    var z = a.matMul(x.expandDims(2)); // (tokens, k·r, 1)
    var weighted = z.mul(Ops.cast(coefficients, dtype)).reshape(tokens, 1, -1);
    var b = Ops.embedding(bank.loraBTransposed(training), rows); // (tokens, k·r, out)
    return weighted.matMul(b).squeeze(1);
  }
}
