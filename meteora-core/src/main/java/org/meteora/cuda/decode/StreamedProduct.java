package org.meteora.cuda.decode;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.meteora.cuda.driver.Kernel;
import org.meteora.cuda.kernel.AdapterMemory;
import org.meteora.cuda.kernel.DecodeLayerKernels;
import org.meteora.cuda.kernel.DecodeLayerKernels.DecodeRouteZ;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.cuda.kernel.MatrixVector;
import org.meteora.cuda.kernel.MatrixVector.Segment;
import org.meteora.nn.Scores;

/**
 * A {@link StepProduct} of few rows by {@link MatrixVector}: first the outputs of all W, then all
 * gates' logits, then the weigher's, then all z.
 *
 * <p>Gates and A are multiplied together with W, since reading a bank of ordinary size costs less
 * than a launch; of large banks only the chosen adapters' rows of A are read, by a launch more.
 */
final class StreamedProduct extends StepProduct {
  private final int ld;
  private final boolean allOfA;
  private final MatrixVector product;

  StreamedProduct(
      DecodeModel model, Kernels kernels, MatrixVector.Tuning tuning, InputGroup group, int rows) {
    super(model, group, rows);
    var all = group.linears().size();
    var columns = group.outputs(all) + group.gates(all) + group.weighed() + group.ranks(all);
    var spread = model.scores() == Scores.STANDARDIZED ? 2 : 0;
    this.ld = (columns + spread + 3) / 4 * 4;
    var norms = model.scores() == Scores.NORM; // all of z is needed, and first
    this.allOfA =
        norms
            || model.scores() == Scores.ALL
            || (long) group.ranks(all) * group.in() * model.dtype().bytes()
                <= tuning.maxStackedABytes();
    var adapters = group.linears().stream().flatMap(l -> l.adapters().stream()).toList();
    var segments = new ArrayList<Segment>();
    group.linears().forEach(l -> segments.add(new Segment(l.weight(), l.out())));
    adapters.forEach(a -> segments.add(new Segment(a.gate(), a.gateRows(), true)));
    group.weigher().ifPresent(w -> segments.add(new Segment(w.weight(), w.adapters())));
    if (allOfA) {
      adapters.forEach(a -> segments.add(new Segment(a.a(), a.sumOfRanks(), norms)));
    }
    segments.removeIf(s -> s.rows() == 0);
    this.product = new MatrixVector(kernels, segments, group.in(), rows, tuning);
  }

  @Override
  int partials() {
    return switch (group.input()) {
      case ATTENTION ->
          group.layer() == 0
              ? DecodeLayerKernels.partialsOfEmbedding(model.hidden())
              : DecodeLayerKernels.partials(model.hidden());
      case MLP -> DecodeLayerKernels.partials(model.hidden());
      case ATTENTION_HEADS, MLP_INNER -> 0;
    };
  }

  @Override
  int ld() {
    return ld;
  }

  @Override
  int slots() {
    return product.slots();
  }

  @Override
  int gateTiles() {
    return product.gateTiles();
  }

  @Override
  boolean leavesSpread() {
    return product.leavesSpread();
  }

  @Override
  int outAt(int which) {
    return group.outputs(which);
  }

  @Override
  int gateAt(int which) {
    return group.outputs(group.linears().size()) + group.gates(which);
  }

  @Override
  int weighedAt() {
    var all = group.linears().size();
    return group.outputs(all) + group.gates(all);
  }

  @Override
  int zAt(int which) {
    var all = group.linears().size();
    return group.outputs(all) + group.gates(all) + group.weighed() + group.ranks(which);
  }

  /**
   * The product's launches.
   *
   * @param y cleared before
   */
  List<Kernel.Launch> launches(StepMemory memory, DecodeLayerKernels layer, long x, long y) {
    var partials = partials();
    var sumsq = partials > 0 ? memory.sumsq : 0;
    var first = product.launch(x, y, ld, memory.gateTilesDone(group), sumsq, partials, model.eps());
    if (allOfA) {
      return List.of(first);
    }
    var linears = group.linears();
    var maxRank =
        linears.stream()
            .flatMap(l -> l.adapters().stream())
            .flatMapToInt(a -> Arrays.stream(a.ranks()))
            .max()
            .orElse(0);
    var aligned =
        group.in() * model.dtype().bytes() % 16 == 0
            && linears.stream().allMatch(l -> l.adapters().map(a -> a.a() % 16 == 0).orElse(true));
    var a = linears.stream().mapToLong(l -> l.adapters().map(AdapterMemory::a).orElse(0L));
    return List.of(
        first,
        layer.routeZ(
            linears.size(),
            maxRank,
            new DecodeRouteZ(
                output(memory, y, 0, 0),
                linears(memory),
                a.toArray(),
                x,
                sumsq,
                y,
                group.in(),
                partials,
                model.eps(),
                aligned)));
  }
}
