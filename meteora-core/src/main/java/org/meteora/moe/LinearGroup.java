package org.meteora.moe;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.types.Shape;
import java.util.ArrayList;
import java.util.List;
import org.meteora.UserException;
import org.meteora.backend.cuda.FusedForward;
import org.meteora.moe.MoeLinear.Output;
import org.meteora.moe.forward.ForwardMode;
import org.meteora.tensor.Ops;

/**
 * Gated linears of a layer that read the same input: q, k and v, or gate and up; or one by itself.
 * At inference on a GPU one product finds the logits of all their gates and z = x Aᵀ of all their
 * adapters; for that their A and gates are moved into one matrix when the group is made. Elsewhere
 * every linear computes by itself.
 */
public final class LinearGroup {
  private final List<MoeLinear> linears;
  private final List<MoeLinear> fusible;
  private final NDArray stacked;
  private FusedForward fused;
  private int fusedRefused;

  /**
   * @param linears one to three, with inputs of one size, of one decoder layer and one control; a
   *     linear can be in one group only
   * @throws IllegalArgumentException for gates over different numbers of adapters
   */
  public LinearGroup(List<MoeLinear> linears) {
    this.linears = List.copyOf(linears);
    this.fusible = linears.stream().filter(LinearGroup::canBeFused).toList();
    if (fusible.stream().mapToInt(linear -> linear.bank().size()).distinct().count() > 1) {
      throw new IllegalArgumentException("linears of one input with different adapters");
    }
    this.stacked =
        fusible.isEmpty()
            ? null
            : BankLayout.stack(fusible.stream().map(MoeLinear::layout).toList());
  }

  /** The linears, in order. */
  public List<MoeLinear> linears() {
    return linears;
  }

  private static boolean canBeFused(MoeLinear linear) {
    var bank = linear.bank();
    return linear.weight().getDevice().isGpu()
        && bank != null
        && bank.gate() != null
        && bank.totalRank() > 0
        && linear.layout().hasLayersDtype();
  }

  /**
   * One pass.
   *
   * @param x {@code (…, in)}; results belong to its manager
   * @param training training's routing, dropout, and gradients to gates, A and B
   * @param wantLogits whether the results must have the gates' logits
   * @return each linear's, in order
   */
  public List<Output> forward(NDArray x, boolean training, boolean wantLogits) {
    var kernels = training ? null : kernels();
    if (kernels == null) {
      return linears.stream().map(linear -> linear.compute(x, training, wantLogits)).toList();
    }
    var shape = x.getShape();
    var rows = shape.dimension() == 2 ? x : x.reshape(-1, shape.get(shape.dimension() - 1));
    double temperature = fusible.getFirst().control().settings().temperature();
    var choices = choices(shape);
    if (rows.getShape().get(0) <= FusedForward.FEW && !wantLogits) {
      var outputs = new ArrayList<Output>();
      var bases = new ArrayList<NDArray>();
      for (var linear : linears) {
        if (fusible.contains(linear)) {
          bases.add(linear.base(x));
          outputs.add(new Output(bases.getLast(), null));
        } else {
          outputs.add(linear.compute(x, false, false));
        }
      }
      kernels.addFew(rows, bases, temperature, choices);
      return outputs;
    }
    try (var masked = kernels.masked(rows, temperature, choices)) {
      return linears.stream()
          .map(
              linear ->
                  fusible.contains(linear)
                      ? add(kernels, masked, linear, x, wantLogits)
                      : linear.compute(x, false, wantLogits))
          .toList();
    }
  }

  private Output add(
      FusedForward kernels, NDArray masked, MoeLinear linear, NDArray x, boolean wantLogits) {
    int at = fusible.indexOf(linear);
    var y = linear.base(x);
    try (var flat = y.reshape(-1, linear.weight().getShape().get(0));
        var z = kernels.z(masked, at)) {
      Ops.addLinear(flat, z, linear.bank().loraB());
    }
    NDArray logits = null;
    if (wantLogits) {
      try (var view = kernels.logits(masked, at)) {
        var rowMajor = Ops.contiguous(view);
        logits = rowMajor.reshape(MoeLinear.withLast(x.getShape(), linear.bank().size()));
      }
    }
    return new Output(y, logits);
  }

  /** Where kernels write their choices for an input of this shape; null when nobody listens. */
  private long[] choices(Shape shape) {
    var control = fusible.getFirst().control();
    if (control.listener() == null) {
      return null;
    }
    int rows = MoeLinear.rows(shape);
    int tokens = (int) (shape.size() / shape.get(shape.dimension() - 1)) / rows;
    return control
        .gathering()
        .next(
            control.listener(),
            fusible.getFirst().layer(),
            fusible.stream().mapToInt(MoeLinear::module).toArray(),
            rows,
            tokens,
            fusible.getFirst().topK());
  }

  /** The kernels for the k and the flags of this pass; null where they are not to be used. */
  private FusedForward kernels() {
    if (fusible.isEmpty()) {
      return null;
    }
    var control = fusible.getFirst().control();
    var mode = control.flags().mode();
    if (control.flags().singleAdapter().isPresent()
        || mode != ForwardMode.FUSED && mode != ForwardMode.AUTO
        || control.listener() != null && control.gathering() == null) {
      return null;
    }
    int topK = fusible.getFirst().topK();
    if (fused != null && fused.fits(topK)) {
      return fused;
    }
    if (fusedRefused == topK) {
      return null;
    }
    if (fused != null) {
      fused.close();
      fused = null;
    }
    try {
      fused = new FusedForward(fusible, stacked, topK);
    } catch (UserException e) {
      fusedRefused = topK;
      Fallback.say("the fused kernels cannot be used: " + e.getMessage());
    }
    return fused;
  }
}
