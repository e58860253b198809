package org.meteora.moe.forward;

import ai.djl.ndarray.NDArray;
import java.util.List;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardStrategy;
import org.meteora.moe.GatedForward;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.GatedLinear.Output;

/**
 * The formula, linear by linear, by the strategy that the flags name: what runs on any device. A
 * backend extends it with what it does by itself where the flags leave it the choice.
 */
public abstract class PortableForward implements GatedForward {
  /** A loop over the adapters, with each one's tokens. */
  protected static final ForwardStrategy LOOP = new LoopForward(LoopForward.Runner::inOrder);

  /** Two batched products with the rows of A and B that each token chose. */
  protected static final ForwardStrategy GATHER = new GatherForward();

  /** One product with all ranks, masked by the routing's weights. */
  protected static final ForwardStrategy MASKED = new MaskedForward();

  private static final ForwardStrategy REFERENCE = new ReferenceForward();

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
      case REFERENCE -> linear.formula(x, context, REFERENCE);
      case ALL -> linear.formula(x, context, LOOP);
      case PARALLEL -> linear.formula(x, context, parallel);
      case GATHER -> linear.formula(x, context, GATHER);
      case MASKED -> masked(linear, x, context);
      case AUTO, FUSED, INVARIANT -> best(linear, x, context);
    };
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
