package org.meteora.moe.forward;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDArrays;
import ai.djl.ndarray.NDList;
import java.util.ArrayList;
import java.util.function.IntConsumer;
import java.util.function.Supplier;
import org.meteora.moe.BankLayout;
import org.meteora.moe.ForwardStrategy;
import org.meteora.moe.Routing;
import org.meteora.tensor.Ops;

/**
 * {@code all}: (token, adapter) pairs sorted by adapter, then two small matmuls for each adapter
 * that was chosen at all. The least arithmetic of all modes, and one wait for the device. {@code
 * parallel}: the same with the adapters' matmuls on several streams, in the backward pass too.
 */
public final class LoopForward implements ForwardStrategy {
  private final Runner runner;

  /** Runs the adapters' parts, which do not depend on each other. */
  @FunctionalInterface
  public interface Runner {
    /**
     * @param count of parts
     * @param part runs the one with this index
     */
    void run(int count, IntConsumer part);
  }

  /**
   * @param runner one part after the other for {@code all}
   */
  public LoopForward(Runner runner) {
    this.runner = runner;
  }

  @Override
  public NDArray contribution(NDArray x, BankLayout bank, Routing routing, boolean training) {
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
    var inputs = Ops.indexSelect(x, 0, Ops.of(manager, tokenOf, pairs));
    var weights =
        Ops.cast(
            Ops.indexSelect(routing.weights().reshape(-1, 1), 0, Ops.of(manager, pairOf, pairs)),
            Ops.dtype(x));
    long out = bank.loraB().getShape().get(0);
    var parts = new ArrayList<Supplier<NDArray>>(); // (pairs, out) of each adapter
    for (int i = 0; i < n; i++) {
      int count = starts[i + 1] - starts[i];
      if (count == 0) {
        continue;
      }
      if (bank.rank(i) == 0) {
        var none = Ops.zeros(manager, Ops.dtype(x), count, out);
        parts.add(() -> none);
        continue;
      }
      var a = Ops.narrow(bank.loraA(), 0, bank.offset(i), bank.rank(i));
      var b = Ops.narrow(bank.loraB(), 1, bank.offset(i), bank.rank(i));
      a.attach(manager);
      b.attach(manager);
      var own = Ops.narrow(inputs, 0, starts[i], count);
      var weight = Ops.narrow(weights, 0, starts[i], count);
      double scale = bank.bank().scales()[i];
      parts.add(
          () -> {
            var z = Ops.linear(own, a, null).mul(weight);
            return Ops.linear(scale == 1 ? z : Ops.scale(z, scale), b, null);
          });
    }
    var results = new NDArray[parts.size()];
    runner.run(results.length, i -> results[i] = parts.get(i).get());
    var all = results.length == 1 ? results[0] : NDArrays.concat(new NDList(results), 0);
    var perPair = Ops.indexSelect(all, 0, Ops.of(manager, position, pairs));
    return k == 1 ? perPair : perPair.reshape(-1, k, out).sum(new int[] {1});
  }
}
