package org.meteora.moe.forward;

import ai.djl.ndarray.NDArray;
import org.meteora.moe.BankLayout;
import org.meteora.moe.ForwardStrategy;
import org.meteora.moe.Routing;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * The formula as it stands: every adapter on every token, times its weight there (0 where it was
 * not chosen).
 */
public final class ReferenceForward implements ForwardStrategy {
  @Override
  public NDArray contribution(NDArray x, BankLayout bank, Routing routing, boolean training) {
    var dtype = Ops.dtype(x);
    var manager = x.getManager();
    NDArray sum = Ops.zeros(manager, dtype, routing.tokens(), bank.loraB().getShape().get(0));
    for (int i = 0; i < bank.bank().size(); i++) {
      if (bank.rank(i) == 0) {
        continue;
      }
      var chosen = Ops.convert(routing.indices().eq((long) i), Dtype.F32);
      var weight =
          Ops.scale(
              routing.weights().mul(chosen).sum(new int[] {1}, true), bank.bank().scales()[i]);
      var a = Ops.narrow(bank.loraA(), 0, bank.offset(i), bank.rank(i));
      var b = Ops.narrow(bank.loraB(), 1, bank.offset(i), bank.rank(i));
      a.attach(manager);
      b.attach(manager);
      var y = Ops.linear(Ops.linear(x, a, null), b, null);
      sum = sum.add(y.mul(Ops.cast(weight, dtype)));
    }
    return sum;
  }

  @Override
  public boolean routesAsTraining() {
    return true;
  }
}
