package org.meteora.backend.cuda;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDArrays;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.IntStream;
import org.meteora.moe.BankLayout;
import org.meteora.moe.Choice;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.Router;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * What routers by place choose in one pass, the same in every linear: asked and sent to the device
 * once, where a question and two copies for each of hundreds of linears would make the device wait
 * as often. For one thread.
 */
final class GivenChoice implements Router.Choosing, AutoCloseable {
  /**
   * How the adapters' ranks lie in the matrix that linears with one input share.
   *
   * @param ranks of each linear's adapters, linear by linear
   * @param scales as {@code ranks}
   * @param columns of the matrix, those behind the ranks among them
   */
  record Ranks(int adapters, List<Integer> ranks, List<Double> scales, int columns) {
    static Ranks of(List<GatedLinear> linears, NDArray stacked) {
      return new Ranks(
          linears.getFirst().bank().size(),
          linears.stream().flatMap(it -> Arrays.stream(it.bank().ranks()).boxed()).toList(),
          linears.stream().flatMap(it -> Arrays.stream(it.bank().scales()).boxed()).toList(),
          (int) stacked.getShape().get(0));
    }
  }

  private final Router.Choosing router;
  private final NDManager manager;
  private final Map<Ranks, NDArray> coefficients = new HashMap<>();
  private Choice choice;
  private int checked; // adapters that it has been compared with
  private NDArray weights;

  /**
   * @param router the same in every linear, whatever its input
   * @param parent of what is kept for the pass
   */
  GivenChoice(Router.Choosing router, NDManager parent) {
    this.router = router;
    this.manager = parent.newSubManager();
  }

  /** Whether a router goes by places alone, so that its choice is every linear's. */
  static boolean serves(Router router) {
    return router instanceof Router.Fixed || router instanceof Router.Rows;
  }

  @Override
  public String name() {
    return router.name();
  }

  @Override
  public Choice choose(GatedLinear linear, NDArray x, int rows) {
    int adapters = linear.bank().size();
    if (choice == null) {
      choice = router.choose(linear, x, rows);
      checked = adapters;
    } else if (adapters < checked) {
      Router.requireBelow(adapters, choice.indices());
      checked = adapters;
    }
    return choice;
  }

  /**
   * What each rank's z is multiplied by: its adapter's weight and scale.
   *
   * @param linears whose ranks these are, all over as many adapters
   * @return {@code (tokens, columns)} in {@code dtype}, 0 behind the ranks; stays this object's
   */
  NDArray coefficients(List<GatedLinear> linears, Ranks ranks, NDArray x, int rows, Dtype dtype) {
    choose(linears.getFirst(), x, rows);
    return coefficients.computeIfAbsent(
        ranks, its -> coefficients(manager, weights(its.adapters), linears, its.columns, dtype));
  }

  /** {@code (tokens, N)} float32. */
  private NDArray weights(int adapters) {
    if (weights == null || weights.getShape().get(1) != adapters) {
      var dense = new float[choice.tokens() * adapters];
      int k = choice.topK();
      for (int i = 0; i < choice.indices().length; i++) {
        dense[i / k * adapters + choice.indices()[i]] += choice.weights()[i];
      }
      weights = Ops.of(manager, dense, choice.tokens(), adapters);
    }
    return weights;
  }

  /**
   * @param weights {@code (rows, N)} float32
   * @return {@code (rows, columns)}, the manager's
   */
  static NDArray coefficients(
      NDManager manager, NDArray weights, List<GatedLinear> linears, int columns, Dtype dtype) {
    try (var scope = manager.newSubManager()) {
      var parts = new NDList();
      for (var linear : linears) {
        if (linear.bank().totalRank() > 0) {
          parts.add(linear.layout().expansion());
        }
      }
      int ranks = linears.stream().mapToInt(linear -> linear.bank().totalRank()).sum();
      if (columns > ranks) {
        long adapters = weights.getShape().get(1);
        parts.add(Ops.zeros(scope, Dtype.F32, adapters, columns - ranks));
      }
      var expansion = NDArrays.concat(parts, 1);
      expansion.attach(scope);
      var scaled = weights.matMul(expansion);
      scaled.attach(scope);
      var result = Ops.convert(scaled, dtype);
      result.attach(manager);
      return result;
    }
  }

  /** Where each linear's ranks begin in the matrix that {@link BankLayout#stack} made. */
  static int[] firstRanks(List<GatedLinear> linears) {
    return IntStream.range(0, linears.size())
        .map(i -> linears.subList(0, i).stream().mapToInt(it -> it.bank().totalRank()).sum())
        .toArray();
  }

  @Override
  public void close() {
    manager.close();
  }
}
