package org.meteora.moe.forward;

import ai.djl.ndarray.NDArray;
import org.meteora.moe.BankLayout;
import org.meteora.moe.ForwardStrategy;
import org.meteora.moe.Routing;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * {@code batch} v2: no gather. All adapters' ranks in one matmul, {@code z = x Aᵀ (tokens, Σr)},
 * times the routing weight of the rank's adapter (0 where it was not chosen) and its scale, then
 * one matmul with B. Any ranks.
 */
public final class MaskedForward implements ForwardStrategy {
  @Override
  public NDArray contribution(NDArray x, BankLayout bank, Routing routing, boolean training) {
    var dtype = Ops.dtype(x);
    var none = Ops.zeros(x.getManager(), Dtype.F32, routing.tokens(), bank.bank().size());
    var weights = Ops.scatterAdd(none, 1, routing.indices(), routing.weights()); // (tokens, N)
    var coefficients = Ops.cast(weights.matMul(bank.expansion()), dtype); // (tokens, Σr)
    var z = Ops.linear(x, bank.loraA(), null);
    return Ops.linear(z.mul(coefficients), bank.loraB(), null);
  }
}
