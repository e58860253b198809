package org.meteora.moe.forward;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDArrays;
import ai.djl.ndarray.NDList;
import java.util.Arrays;
import java.util.Objects;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.SideStreams;
import org.meteora.cuda.driver.Stream;
import org.meteora.moe.BankLayout;
import org.meteora.moe.Routing;
import org.meteora.tensor.Ops;

/**
 * {@code all}: (token, adapter) pairs sorted by adapter, then two small matmuls for each adapter
 * that was chosen at all. The least arithmetic of all modes, and one wait for the device. {@code
 * parallel}: the same on a GPU with the adapters' matmuls on several streams, in the backward pass
 * too.
 */
public final class LoopForward implements ForwardStrategy {
  private static final Stream LIBTORCH = Stream.of(0);

  private final boolean parallel;

  public LoopForward(boolean parallel) {
    this.parallel = parallel;
  }

  /** One adapter's part: {@code (pairs, out)} from its pairs' inputs and weights. */
  private record Part(NDArray x, NDArray weight, NDArray a, NDArray b, double scale) {
    NDArray compute() {
      var z = Ops.linear(x, a, null).mul(weight);
      return Ops.linear(scale == 1 ? z : Ops.scale(z, scale), b, null);
    }
  }

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
    if (parallel && x.getDevice().isGpu()) {
      computeOnStreams(parts, results, x.getDevice().getDeviceId());
    } else {
      for (int i = 0; i < n; i++) {
        if (parts[i] != null) {
          results[i] = parts[i].compute();
        }
      }
    }
    var chosenOnes =
        new NDList(Arrays.stream(results).filter(Objects::nonNull).toArray(NDArray[]::new));
    var all = chosenOnes.size() == 1 ? chosenOnes.head() : NDArrays.concat(chosenOnes, 0);
    var perPair = Ops.indexSelect(all, 0, manager.create(position));
    return k == 1 ? perPair : perPair.reshape(-1, k, out).sum(new int[] {1});
  }

  /**
   * The parts on side streams. What they read was made on libtorch's stream, and what they make is
   * read there: all streams wait for it first and it for them afterwards; no array is freed in
   * between.
   */
  private static void computeOnStreams(Part[] parts, NDArray[] results, int device) {
    var cuda = Cuda.device(device);
    cuda.makeCurrent();
    var side = SideStreams.of(cuda);
    side.fork(LIBTORCH);
    try {
      int turn = 0;
      for (int i = 0; i < parts.length; i++) {
        if (parts[i] != null) {
          var stream = side.streams().get(turn++ % side.streams().size());
          try (var guard = Ops.onStream(stream.handle(), device)) {
            results[i] = parts[i].compute();
          }
        }
      }
    } finally {
      side.join(LIBTORCH);
    }
  }
}
