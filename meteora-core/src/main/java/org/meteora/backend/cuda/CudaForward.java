package org.meteora.backend.cuda;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.types.Shape;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.meteora.UserException;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.cuda.kernel.MatrixVector;
import org.meteora.moe.BankLayout;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.GatedLinear.Output;
import org.meteora.moe.Router;
import org.meteora.moe.forward.LoopForward;
import org.meteora.moe.forward.PortableForward;
import org.meteora.tensor.Ops;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Gated linears with one input on a GPU. At inference one product finds the logits of all their
 * gates and z = x Aᵀ of all their adapters; for that their A and gates are moved into one matrix
 * when the group is made. Where routers go by places alone ({@link GivenChoice}), or there is one
 * adapter, nothing is scored, and z is multiplied by coefficients that are there. In training,
 * where {@link CudaTraining} refuses a pass, each is {@link MaskedTraining}.
 */
final class CudaForward extends PortableForward {
  static final Logger LOG = LoggerFactory.getLogger(CudaForward.class);

  /** What kernels are made for. */
  private record Choosing(Router.Scoring router, int topK) {}

  private final Products products;
  private final List<GatedLinear> gated;
  private final List<GatedLinear> adapted;
  private final NDArray all;
  private final GivenChoice.Ranks ranks;
  private final int[] firstRanks;
  private NDArray scales;
  private final Map<Choosing, FusedInference> fused = new HashMap<>();
  private final Set<Choosing> refused = new HashSet<>();

  /**
   * @param streams runs parts on several streams
   */
  CudaForward(List<GatedLinear> linears, Products products, LoopForward.Runner streams) {
    super(linears, new LoopForward(streams));
    this.products = products;
    this.adapted = linears.stream().filter(CudaForward::isAdapted).toList();
    if (adapted.stream().mapToInt(linear -> linear.bank().size()).distinct().count() > 1) {
      throw new IllegalArgumentException("linears of one input with different adapters");
    }
    var layouts = adapted.stream().map(GatedLinear::layout).toList();
    boolean allGated = adapted.stream().allMatch(linear -> linear.bank().gate() != null);
    boolean gateless = adapted.stream().allMatch(linear -> linear.bank().gate() == null);
    // a linear by itself that is one of a group has its parameters in the group's stack
    boolean stacks = !adapted.isEmpty() && BankLayout.canStack(layouts) && (allGated || gateless);
    this.all = stacks ? BankLayout.stack(layouts) : null;
    this.ranks = stacks ? GivenChoice.Ranks.of(adapted, all) : null;
    this.firstRanks = GivenChoice.firstRanks(adapted);
    this.gated = stacks && allGated ? adapted : List.of();
  }

  private static boolean isAdapted(GatedLinear linear) {
    return linear.bank() != null && linear.bank().totalRank() > 0;
  }

  /** What kernels can serve of these with the context's router; there is more than one adapter. */
  private List<GatedLinear> fusible(ForwardContext context) {
    return context.routing().router() instanceof Router.Gates
        ? gated
        : adapted.stream().filter(linear -> linear.bank().size() > 1).toList();
  }

  @Override
  public List<Output> forward(NDArray x, ForwardContext context) {
    if (all != null && !context.training() && context.backendChooses()) {
      if (adapted.stream().allMatch(linear -> linear.isOnly(context))) {
        return scaled(x, scales(), context);
      }
      if (context.routing().router() instanceof GivenChoice given) {
        return given(x, context, given);
      }
    }
    var fusible = fusible(context);
    var kernels = kernels(context, fusible);
    if (kernels == null) {
      return super.forward(x, context);
    }
    double temperature = context.routing().temperature();
    var choices = choices(x.getShape(), context, fusible);
    if (isFew(x) && !context.gateLogits()) {
      var outputs = new ArrayList<Output>();
      var bases = new ArrayList<NDArray>();
      for (var linear : linears()) {
        if (fusible.contains(linear)) {
          bases.add(linear.base(x));
          outputs.add(new Output(bases.getLast(), null));
        } else {
          outputs.add(forward(linear, x, context));
        }
      }
      try (var rows = flat(x)) {
        kernels.routeAndAdd(rows, bases, temperature, choices);
      }
      return outputs;
    }
    var results = kernels.forward(x, temperature, choices);
    try (var all = results.logits()) {
      return linears().stream()
          .map(
              linear -> {
                int at = fusible.indexOf(linear);
                return at < 0
                    ? forward(linear, x, context)
                    : new Output(
                        results.y().get(at),
                        context.gateLogits()
                            ? logits(kernels.logits(results, at), linear, x)
                            : null);
              })
          .toList();
    }
  }

  private static boolean isFew(NDArray x) {
    var shape = x.getShape();
    return shape.size() / shape.get(shape.dimension() - 1) <= MatrixVector.MAX_ROWS;
  }

  private List<Output> given(NDArray x, ForwardContext context, GivenChoice given) {
    int rows = GatedLinear.batchRows(x.getShape());
    NDArray coefficients;
    try (var flat = flat(x)) {
      coefficients = given.coefficients(adapted, ranks, flat, rows, Ops.dtype(all));
    }
    return scaled(x, coefficients, context);
  }

  /** With z of all ranks times coefficients {@code (tokens or 1, columns)}. */
  private List<Output> scaled(NDArray x, NDArray coefficients, ForwardContext context) {
    try (var flat = flat(x);
        var z = Ops.linear(flat, all, null)) {
      z.muli(coefficients);
      return linears().stream()
          .map(
              linear -> {
                int at = adapted.indexOf(linear);
                if (at < 0) {
                  return forward(linear, x, context);
                }
                var y = linear.base(x);
                if (!linear.isOnly(context)
                    && context.routing().router() instanceof GivenChoice given) {
                  int rows = GatedLinear.batchRows(x.getShape());
                  linear.report(context, given.choose(linear, flat, rows), x.getShape());
                }
                add(y, z, firstRanks[at], linear);
                return new Output(y, null);
              })
          .toList();
    }
  }

  private static void add(NDArray y, NDArray z, int first, GatedLinear linear) {
    try (var to = y.reshape(-1, linear.weight().getShape().get(0));
        var its = Ops.narrow(z, 1, first, linear.bank().totalRank())) {
      Ops.addLinear(to, its, linear.bank().loraB());
    }
  }

  /** A new view {@code (tokens, in)}. */
  private static NDArray flat(NDArray x) {
    return x.reshape(-1, x.getShape().get(x.getShape().dimension() - 1));
  }

  /** {@code (1, columns)}: the scale of the only adapter in each linear. */
  private synchronized NDArray scales() {
    if (scales == null) {
      var manager = all.getManager();
      try (var one = Ops.of(manager, new float[] {1}, 1, 1)) {
        scales = GivenChoice.coefficients(manager, one, adapted, ranks.columns(), Ops.dtype(all));
      }
    }
    return scales;
  }

  private static NDArray logits(NDArray view, GatedLinear linear, NDArray x) {
    try (view) {
      var rowMajor = Ops.contiguous(view);
      return rowMajor.reshape(GatedLinear.withLast(x.getShape(), linear.bank().size()));
    }
  }

  /** Where kernels write their choices for an input of this shape; null when nobody listens. */
  private static long[] choices(Shape shape, ForwardContext context, List<GatedLinear> fusible) {
    if (context.listener().isEmpty()) {
      return null;
    }
    int rows = GatedLinear.batchRows(shape);
    int tokens = (int) (shape.size() / shape.get(shape.dimension() - 1)) / rows;
    return ((RoutingGatherer) context.listener().get())
        .next(
            fusible.getFirst().layer(),
            fusible.stream().mapToInt(linear -> linear.projection().ordinal()).toArray(),
            rows,
            tokens,
            fusible.getFirst().topK(context));
  }

  /** The kernels for this pass; null where they are not to be used. */
  private FusedInference kernels(ForwardContext context, List<GatedLinear> fusible) {
    if (fusible.isEmpty()
        || context.training()
        || !context.backendChooses()
        || !(context.routing().router() instanceof Router.Scoring router)
        || context.gateLogits() && !(router instanceof Router.Gates)
        || context.listener().isPresent()
            && !(context.listener().get() instanceof RoutingGatherer)) {
      return null;
    }
    return kernels(new Choosing(router, fusible.getFirst().topK(context)), fusible);
  }

  private synchronized FusedInference kernels(Choosing wanted, List<GatedLinear> fusible) {
    var kept = fused.get(wanted);
    if (kept != null && kept.isCurrent()) {
      return kept;
    }
    if (refused.contains(wanted)) {
      return null;
    }
    if (kept != null) {
      kept.close();
      fused.remove(wanted);
    }
    boolean gates = wanted.router() instanceof Router.Gates;
    try {
      var made =
          new FusedInference(fusible, wanted.router(), products, gates ? all : null, wanted.topK());
      fused.put(wanted, made);
      return made;
    } catch (UserException e) {
      refused.add(wanted);
      LOG.info(
          "gated layers without the fused kernels, {}, k {}: {}",
          wanted.router().name(),
          wanted.topK(),
          e.getMessage());
      return null;
    }
  }

  @Override
  protected Output masked(GatedLinear linear, NDArray x, ForwardContext context) {
    var bank = linear.bank();
    int topK = linear.topK(context);
    boolean kernels =
        context.training()
            && context.listener().isEmpty()
            && linear.gated(context)
            && bank.totalRank() > 0
            && topK <= Kernels.MAX_TOP_K
            && bank.size() <= Kernels.MAX_ADAPTERS;
    if (!kernels) {
      return linear.formula(x, context, MASKED);
    }
    linear.layout().parametersMayChange();
    var y = linear.base(x);
    var rows = GatedLinear.rows(x);
    var result = MaskedTraining.forward(rows, linear.layout(), topK, linear.dropout(context));
    return new Output(
        y.add(GatedLinear.like(result.added(), y.getShape())),
        GatedLinear.like(result.logits(), GatedLinear.withLast(x.getShape(), bank.size())));
  }

  @Override
  protected Output best(GatedLinear linear, NDArray x, ForwardContext context) {
    if (context.training()) {
      return masked(linear, x, context);
    }
    return linear.formula(x, context, isFew(x) ? GATHER : MASKED);
  }
}
