package org.meteora.moe;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDArrays;
import ai.djl.ndarray.NDList;
import org.meteora.torch.Ops;

/**
 * {@code all}: (token, adapter) pairs sorted by adapter, then two small matmuls for each adapter
 * that was chosen at all. The least arithmetic of all modes, and one wait for the device.
 */
final class LoopForward implements ForwardStrategy {
  @Override
  public NDArray contribution(NDArray x, BankLayout bank, Routing routing) {
    var manager = x.getManager();
    int n = bank.bank().size();
    int k = routing.topK();
    var chosen = routing.indices().toLongArray();
    int pairs = chosen.length;
    var starts = new int[n + 1];
    for (long adapter : chosen) {
      starts[(int) adapter + 1]++;
    }
    for (int i = 0; i < n; i++) {
      starts[i + 1] += starts[i];
    }
    var next = starts.clone();
    var tokenOf = new long[pairs]; // sorted position → token
    var pairOf = new long[pairs]; // sorted position → pair
    var position = new long[pairs]; // pair → sorted position
    for (int pair = 0; pair < pairs; pair++) {
      int at = next[(int) chosen[pair]]++;
      tokenOf[at] = pair / k;
      pairOf[at] = pair;
      position[pair] = at;
    }
    var inputs = Ops.indexSelect(x, 0, manager.create(tokenOf));
    var weights =
        Ops.cast(
            Ops.indexSelect(routing.weights().reshape(-1, 1), 0, manager.create(pairOf)),
            Ops.dtype(x));
    long out = bank.loraB().getShape().get(0);
    var parts = new NDList();
    for (int i = 0; i < n; i++) {
      int count = starts[i + 1] - starts[i];
      if (count == 0) {
        continue;
      }
      if (bank.rank(i) == 0) {
        parts.add(Ops.zeros(manager, Ops.dtype(x), count, out));
        continue;
      }
      var a = Ops.narrow(bank.loraA(), 0, bank.offset(i), bank.rank(i));
      var b = Ops.narrow(bank.loraB(), 1, bank.offset(i), bank.rank(i));
      a.attach(manager);
      b.attach(manager);
      var own = Ops.narrow(inputs, 0, starts[i], count);
      var weight = Ops.narrow(weights, 0, starts[i], count);
      double scale = bank.bank().scales()[i];
      var z = Ops.linear(own, a, null).mul(weight);
      parts.add(Ops.linear(scale == 1 ? z : Ops.scale(z, scale), b, null));
    }
    var all = parts.size() == 1 ? parts.head() : NDArrays.concat(parts, 0);
    var perPair = Ops.indexSelect(all, 0, manager.create(position));
    return k == 1 ? perPair : perPair.reshape(-1, k, out).sum(new int[] {1});
  }
}
