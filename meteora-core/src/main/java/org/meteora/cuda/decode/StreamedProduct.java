package org.meteora.cuda.decode;

import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.stream.IntStream;
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
 * than a launch; of large banks only the chosen adapters' rows of A are read, by a launch more,
 * while the product is at work where its gates come first.
 */
final class StreamedProduct extends StepProduct {
  /**
   * Bytes of A at most that are read whole where gates come first, and the chosen rows could be
   * multiplied while the product is at work. A step with 28 adapters of rank 8 on an H100,
   * Llama-3-8B's shapes, with all A read whole and with those of q k v and of down (5.5 and 6.4 MB)
   * by chosen rows: 5.83, 5.75 ms at 1 row, 6.19, 6.06 at 4, 7.22, 7.17 at 16.
   */
  private static final long MAX_BESIDE_GATES = 4 << 20;

  /**
   * Adapters at most whose logits a warp of the kernel behind looks at itself where a launch before
   * it has chosen: a logit a lane ({@code CHOICE_CAN_BE_TAKEN} in {@code decode_layer.cuh}).
   * Waiting for that launch takes longer: a step with 28 adapters on an H100 5.77 and 6.07 ms at 1
   * and 4 rows, and 5.85 and 6.13 with the choice taken over, the same at 16. With 256, which are
   * eight logits a lane and linear: 6.13, 6.68 and 8.21 ms at 1, 4 and 16 rows, and 6.11, 6.44 and
   * 7.72.
   */
  private static final int OWN_CHOICE = 32;

  private final boolean allOfA;
  private final MatrixVector product;
  private final boolean takesChoice;

  StreamedProduct(
      DecodeModel model, Kernels kernels, MatrixVector.Tuning tuning, InputGroup group, int rows) {
    super(model, group, rows, layout(model, group));
    var norms = model.scores() == Scores.NORM; // all of z is needed, and first
    var chosen = product(kernels, tuning, Optional.empty());
    var bytes = (long) group.ranks(group.linears().size()) * group.in() * model.dtype().bytes();
    var most =
        chosen.gateTiles() > 0
            ? Math.min(tuning.maxStackedABytes(), MAX_BESIDE_GATES)
            : tuning.maxStackedABytes();
    this.allOfA = norms || model.scores() == Scores.ALL || bytes <= most;
    this.product = allOfA ? product(kernels, tuning, Optional.of(norms)) : chosen;
    var weighs = model.scores() == Scores.PRODUCT || model.scores() == Scores.MAGNITUDE;
    var many = kernels.constants().maxAdapters() > OWN_CHOICE;
    this.takesChoice = weighs && many && !allOfA && product.gateTiles() > 0;
  }

  private static Layout layout(DecodeModel model, InputGroup group) {
    var all = group.linears().size();
    var gates = group.outputs(all);
    var weighed = gates + group.gates(all);
    var z = weighed + group.weighed();
    var spread = model.scores() == Scores.STANDARDIZED ? 2 : 0;
    var places =
        IntStream.range(0, all)
            .mapToObj(i -> new Place(group.outputs(i), gates + group.gates(i), z + group.ranks(i)));
    return new Layout((z + group.ranks(all) + spread + 3) / 4 * 4, places.toList(), weighed);
  }

  /**
   * @param a whether A comes first, if it is in the product
   */
  private MatrixVector product(Kernels kernels, MatrixVector.Tuning tuning, Optional<Boolean> a) {
    var adapters = group.linears().stream().flatMap(l -> l.adapters().stream()).toList();
    var segments = new ArrayList<Segment>();
    group.linears().forEach(l -> segments.add(new Segment(l.weight(), l.out())));
    adapters.forEach(each -> segments.add(new Segment(each.gate(), each.gateRows(), true)));
    group.weigher().ifPresent(w -> segments.add(new Segment(w.weight(), w.adapters())));
    a.ifPresent(
        first ->
            adapters.forEach(
                each -> segments.add(new Segment(each.a(), each.sumOfRanks(), first))));
    segments.removeIf(s -> s.rows() == 0);
    return new MatrixVector(kernels, segments, group.in(), rows, tuning);
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
  int slots() {
    return product.slots();
  }

  @Override
  int gateTiles() {
    return product.gateTiles();
  }

  @Override
  int choices() {
    return takesChoice ? group.linears().size() * rows : 0;
  }

  @Override
  boolean leavesSpread() {
    return product.leavesSpread();
  }

  /** The product's launches; {@link #y} is cleared before. */
  List<Kernel.Launch> launches(StepMemory memory, DecodeLayerKernels layer) {
    var x = x(memory);
    var y = y(memory);
    var partials = partials();
    var sumsq = partials > 0 ? memory.sumsq : 0;
    var first =
        product.launch(
            x, y, layout.ld(), memory.gateTilesDone(group), sumsq, partials, model.eps());
    if (allOfA) {
      return List.of(first);
    }
    var linears = group.linears();
    var maxRank =
        linears.stream()
            .flatMap(l -> l.adapters().stream())
            .mapToInt(AdapterMemory::maxRank)
            .max()
            .orElse(0);
    var aligned =
        group.in() * model.dtype().bytes() % 16 == 0
            && linears.stream().allMatch(l -> l.adapters().map(a -> a.a() % 16 == 0).orElse(true));
    var a = linears.stream().mapToLong(l -> l.adapters().map(AdapterMemory::a).orElse(0L));
    // rows of A of a block, so that all blocks are on the multiprocessors together
    var each = rows > 8 ? 2 : 1;
    return List.of(
        first,
        layer.routeZ(
            linears.size(),
            maxRank,
            new DecodeRouteZ(
                output(memory, 0, 0),
                linears(memory),
                a.toArray(),
                x,
                sumsq,
                y,
                group.in(),
                partials,
                model.eps(),
                aligned,
                each)));
  }
}
