package org.meteora.moe.forward;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDArrays;
import ai.djl.ndarray.NDList;
import java.util.Arrays;
import java.util.Objects;
import java.util.function.IntConsumer;
import java.util.stream.IntStream;
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

    /** One after the other. */
    static void inOrder(int count, IntConsumer part) {
      for (int i = 0; i < count; i++) {
        part.accept(i);
      }
    }
  }

  /**
   * @param runner {@link Runner#inOrder} for {@code all}
   */
  public LoopForward(Runner runner) {
    this.runner = runner;
  }

  /** One adapter's part: {@code (pairs, out)} from its pairs' inputs and weights. */
  private record Part(NDArray x, NDArray weight, NDArray a, NDArray b, double scale) {
    NDArray compute() {
      var z = Ops.linear(x, a, null).mul(weight);
      return Ops.linear(scale == 1 ? z : Ops.scale(z, scale), b, null);
    }
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
    var results = new NDArray[n];
    var parts = new Part[n];
    for (int i = 0; i < n; i++) {
      int count = starts[i + 1] - starts[i];
      if (count == 0) {
        continue;
      }
      if (bank.rank(i) == 0) {
        results[i] = Ops.zeros(manager, Ops.dtype(x), count, out);
        continue;
      }
      var a = Ops.narrow(bank.loraA(), 0, bank.offset(i), bank.rank(i));
      var b = Ops.narrow(bank.loraB(), 1, bank.offset(i), bank.rank(i));
      a.attach(manager);
      b.attach(manager);
      var own = Ops.narrow(inputs, 0, starts[i], count);
      var weight = Ops.narrow(weights, 0, starts[i], count);
      parts[i] = new Part(own, weight, a, b, bank.bank().scales()[i]);
    }
    var present = IntStream.range(0, n).filter(i -> parts[i] != null).toArray();
    runner.run(present.length, i -> results[present[i]] = parts[present[i]].compute());
    var chosenOnes =
        new NDList(Arrays.stream(results).filter(Objects::nonNull).toArray(NDArray[]::new));
    var all = chosenOnes.size() == 1 ? chosenOnes.head() : NDArrays.concat(chosenOnes, 0);
    var perPair = Ops.indexSelect(all, 0, Ops.of(manager, position, pairs));
    return k == 1 ? perPair : perPair.reshape(-1, k, out).sum(new int[] {1});
  }
}
