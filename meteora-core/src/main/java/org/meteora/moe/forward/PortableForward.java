package org.meteora.moe.forward;

import ai.djl.ndarray.NDArray;
import java.util.List;
import java.util.stream.IntStream;
import org.meteora.moe.BankLayout;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardStrategy;
import org.meteora.moe.GatedForward;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.GatedLinear.Output;
import org.meteora.moe.Routing;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * The formula, linear by linear, by the strategy that the flags name: what runs on any device. A
 * backend extends it with what it does by itself where the flags leave it the choice.
 */
public abstract class PortableForward implements GatedForward {
  /** A loop over the adapters, with each one's tokens. */
  protected static final ForwardStrategy LOOP =
      new LoopForward((count, part) -> IntStream.range(0, count).forEachOrdered(part));

  /** Two batched products with the rows of A and B that each token chose. */
  protected static final ForwardStrategy GATHER = PortableForward::gather;

  /** One product with all ranks, masked by the routing's weights. */
  protected static final ForwardStrategy MASKED = PortableForward::masked;

  private final List<GatedLinear> linears;
  private final ForwardStrategy parallel;

  /**
   * @param parallel what {@code MOELINEAR_FWD_INNER_LOOP_MODE=parallel} stands for on this device
   */
  protected PortableForward(List<GatedLinear> linears, ForwardStrategy parallel) {
    this.linears = List.copyOf(linears);
    this.parallel = parallel;
  }

  @Override
  public final List<GatedLinear> linears() {
    return linears;
  }

  @Override
  public List<Output> forward(NDArray x, ForwardContext context) {
    return linears.stream().map(linear -> forward(linear, x, context)).toList();
  }

  /** One linear by itself. */
  protected final Output forward(GatedLinear linear, NDArray x, ForwardContext context) {
    if (linear.bank() == null) {
      return new Output(base(linear, x), null);
    }
    return switch (context.mode()) {
      case REFERENCE -> linear.formula(x, context, PortableForward::reference);
      case ALL -> linear.formula(x, context, LOOP);
      case PARALLEL -> linear.formula(x, context, parallel);
      case GATHER -> linear.formula(x, context, GATHER);
      case MASKED -> masked(linear, x, context);
      case AUTO, FUSED, INVARIANT -> best(linear, x, context);
    };
  }

  /**
   * The formula as it stands: every adapter on every token, times its weight there (0 where it was
   * not chosen).
   */
  private static NDArray reference(NDArray x, BankLayout bank, Routing routing, boolean training) {
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

  /**
   * {@code batch} v1: gathers the chosen adapters' rows of A and of Bᵀ for every token, then two
   * batched matmuls. Reads only what was chosen: the best for few tokens. Unequal ranks are padded
   * with rows whose coefficient is 0.
   */
  private static NDArray gather(NDArray x, BankLayout bank, Routing routing, boolean training) {
    int tokens = routing.tokens();
    var rows = Ops.embedding(bank.rows(), routing.indices()).reshape(tokens, -1); // (tokens, k·r)
    var coefficients =
        Ops.embedding(bank.rowScales(), routing.indices())
            .mul(routing.weights().expandDims(2))
            .reshape(tokens, -1, 1);
    var a = Ops.embedding(bank.loraA(), rows); // (tokens, k·r, in)
    var z = a.matMul(x.expandDims(2)); // (tokens, k·r, 1)
    var weighted = z.mul(Ops.cast(coefficients, Ops.dtype(x))).reshape(tokens, 1, -1);
    var b = Ops.embedding(bank.loraBTransposed(training), rows); // (tokens, k·r, out)
    return weighted.matMul(b).squeeze(1);
  }

  /**
   * {@code batch} v2: no gather. All adapters' ranks in one matmul, {@code z = x Aᵀ (tokens, Σr)},
   * times the routing weight of the rank's adapter (0 where it was not chosen) and its scale, then
   * one matmul with B. Any ranks.
   */
  private static NDArray masked(NDArray x, BankLayout bank, Routing routing, boolean training) {
    var none = Ops.zeros(x.getManager(), Dtype.F32, routing.tokens(), bank.bank().size());
    var weights = Ops.scatterAdd(none, 1, routing.indices(), routing.weights()); // (tokens, N)
    var coefficients = Ops.cast(weights.matMul(bank.expansion()), Ops.dtype(x)); // (tokens, Σr)
    var z = Ops.linear(x, bank.loraA(), null);
    return Ops.linear(z.mul(coefficients), bank.loraB(), null);
  }

  /** The product of a linear without adapters. */
  protected NDArray base(GatedLinear linear, NDArray x) {
    return linear.base(x);
  }

  /** What {@link org.meteora.moe.ForwardMode#MASKED} stands for on this device. */
  protected Output masked(GatedLinear linear, NDArray x, ForwardContext context) {
    return linear.formula(x, context, MASKED);
  }

  /** What this device does best. */
  protected abstract Output best(GatedLinear linear, NDArray x, ForwardContext context);
}
