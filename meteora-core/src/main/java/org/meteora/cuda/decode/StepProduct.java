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
import org.meteora.cuda.kernel.ProductOutput;
import org.meteora.cuda.kernel.RoutedLinear;

/**
 * The product of the linears of an {@link InputGroup} for some rows: of each row of y the first are
 * the outputs of all W, then the logits of all gates, then z = A x.
 *
 * <p>Gates and A are multiplied together with W, since reading a bank of ordinary size costs less
 * than a launch; of large banks only the chosen adapters' rows of A are read, by a launch more.
 */
final class StepProduct {
  private final DecodeModel model;
  private final Kernels kernels;
  private final MatrixVector.Tuning tuning;
  private final InputGroup group;
  private final int rows;
  private final int ld;
  private final boolean allOfA;
  private final MatrixVector product;

  StepProduct(
      DecodeModel model, Kernels kernels, MatrixVector.Tuning tuning, InputGroup group, int rows) {
    this.model = model;
    this.kernels = kernels;
    this.tuning = tuning;
    this.group = group;
    this.rows = rows;
    var all = group.linears().size();
    this.ld = (group.outputs(all) + group.gates(all) + group.ranks(all) + 3) / 4 * 4;
    this.allOfA =
        (long) group.ranks(all) * group.in() * model.dtype().bytes() <= tuning.maxStackedABytes();
    var adapters = group.linears().stream().flatMap(l -> l.adapters().stream()).toList();
    var segments = new ArrayList<Segment>();
    group.linears().forEach(l -> segments.add(new Segment(l.weight(), l.out())));
    adapters.forEach(a -> segments.add(new Segment(a.gate(), a.count(), true)));
    if (allOfA) {
      adapters.forEach(a -> segments.add(new Segment(a.a(), a.sumOfRanks())));
    }
    segments.removeIf(s -> s.rows() == 0);
    this.product = new MatrixVector(kernels, segments, group.in(), rows, tuning);
  }

  int rows() {
    return rows;
  }

  /** Floats of y. */
  long floats() {
    return (long) product.slots() * rows * ld;
  }

  /**
   * What it leaves in {@code y}.
   *
   * @param clear what the kernel behind sets to zero, {@code clearCount} floats; or 0
   */
  ProductOutput output(StepMemory memory, long y, long clear, long clearCount) {
    return new ProductOutput(
        y,
        clear,
        memory.inverseTemperature,
        clearCount,
        product.gateTiles() > 0 ? memory.gateTilesDone(group) : 0,
        product.slots(),
        ld,
        rows,
        product.gateTiles());
  }

  /** The group's linears as they lie in a row of y. */
  List<RoutedLinear> linears(StepMemory memory) {
    var routed = new ArrayList<RoutedLinear>();
    for (var i = 0; i < group.linears().size(); i++) {
      routed.add(linear(memory, i));
    }
    return routed;
  }

  private RoutedLinear linear(StepMemory memory, int which) {
    var all = group.linears().size();
    var linear = group.linears().get(which);
    var outAt = group.outputs(which);
    var vectors =
        linear.out() % 4 == 0
            && outAt % 4 == 0
            && linear.adapters().map(a -> a.b() % 16 == 0).orElse(true);
    if (linear.adapters().isEmpty()) {
      return new RoutedLinear(0, linear.bias(), 0, 0, 0, 0, outAt, 0, 0, 0, linear.out(), vectors);
    }
    var adapters = linear.adapters().get();
    var indices = memory.routing(group.layer(), group.first() + which, rows);
    return new RoutedLinear(
        adapters.b(),
        linear.bias(),
        memory.offsets(linear),
        memory.scales(linear),
        indices,
        indices + memory.routingPart(rows),
        outAt,
        group.outputs(all) + group.gates(which),
        group.outputs(all) + group.gates(all) + group.ranks(which),
        adapters.count(),
        linear.out(),
        vectors);
  }

  /**
   * The product's launches.
   *
   * @param y cleared before
   * @param partials sums of squares of a row, when x is an RMSNorm's input; or 0
   */
  List<Kernel.Launch> launches(
      StepMemory memory, DecodeLayerKernels layer, long x, long y, int partials) {
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
