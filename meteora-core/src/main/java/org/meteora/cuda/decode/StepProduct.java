package org.meteora.cuda.decode;

import java.util.ArrayList;
import java.util.List;
import java.util.stream.IntStream;
import org.meteora.cuda.decode.DecodeModel.Weigher;
import org.meteora.cuda.kernel.DecodeLayerKernels.DecodeAddMixture;
import org.meteora.cuda.kernel.DecodeLayerKernels.MixedLinear;
import org.meteora.cuda.kernel.ProductOutput;
import org.meteora.cuda.kernel.RoutedLinear;
import org.meteora.nn.Scores;

/**
 * The product of the linears of an {@link InputGroup} for some rows: in a row of y are the outputs
 * of all W, and behind them the logits of all gates, or of the layer's weigher, and z = A x.
 */
abstract sealed class StepProduct permits StreamedProduct, LibraryProduct {
  /** Where a linear's outputs, its gate's logits and its z lie in a row of y. */
  record Place(int out, int gate, int z) {}

  /**
   * What a row of y has.
   *
   * @param ld floats of a row
   * @param places of each linear's
   * @param weighed where the weigher's logits lie
   */
  record Layout(int ld, List<Place> places, int weighed) {}

  final DecodeModel model;
  final InputGroup group;
  final int rows;
  final Layout layout;

  StepProduct(DecodeModel model, InputGroup group, int rows, Layout layout) {
    this.model = model;
    this.group = group;
    this.rows = rows;
    this.layout = layout;
  }

  /** Sums of squares of a row of the input, when it is an RMSNorm's, not yet divided; or 0. */
  int partials() {
    return 0;
  }

  /** Copies of y that are to be summed. */
  abstract int slots();

  /** Tiles of gates that come first; 0: they do not. */
  int gateTiles() {
    return 0;
  }

  /** Choices that a launch leaves for the kernel behind, of all linears' rows; 0: it chooses. */
  int choices() {
    return 0;
  }

  /**
   * Whether the input's spread is in the last two columns of y, for {@link Scores#STANDARDIZED}.
   */
  boolean leavesSpread() {
    return false;
  }

  /** Floats of y. */
  long floats() {
    return (long) slots() * rows * layout.ld();
  }

  /** Its input (rows, in). */
  final long x(StepMemory memory) {
    return switch (group.input()) {
      case ATTENTION, MLP -> memory.normed;
      case ATTENTION_HEADS -> memory.attended;
      case MLP_INNER -> memory.activated;
    };
  }

  /** What it leaves, float32 ({@link #slots}, rows, ld): in two buffers in turn. */
  final long y(StepMemory memory) {
    return switch (group.input()) {
      case ATTENTION, MLP -> memory.yA;
      case ATTENTION_HEADS, MLP_INNER -> memory.yB;
    };
  }

  /**
   * What it leaves in {@link #y}.
   *
   * @param clear what the kernel behind sets to zero, {@code clearCount} floats; or 0
   */
  ProductOutput output(StepMemory memory, long clear, long clearCount) {
    return new ProductOutput(
        y(memory),
        clear,
        memory.inverseTemperature,
        clearCount,
        gateTiles() > 0 ? memory.gateTilesDone(group) : 0,
        slots(),
        layout.ld(),
        rows,
        gateTiles(),
        leavesSpread() ? 0 : x(memory),
        partials() > 0 ? memory.sumsq : 0,
        group.in(),
        partials(),
        model.eps(),
        memory.choice,
        memory.choiceWeights,
        choices() > 0 ? memory.choicesDone(group) : 0,
        choices());
  }

  /** The group's linears as they lie in a row of y. */
  List<RoutedLinear> linears(StepMemory memory) {
    return IntStream.range(0, group.linears().size()).mapToObj(i -> linear(memory, i)).toList();
  }

  /** What adds all adapters to {@link #y}, of {@link Scores#ALL}. */
  DecodeAddMixture mixture(StepMemory memory) {
    var mixed = new ArrayList<MixedLinear>();
    for (var i = 0; i < group.linears().size(); i++) {
      var linear = group.linears().get(i);
      if (linear.adapters().isPresent()) {
        var adapters = linear.adapters().get();
        mixed.add(
            new MixedLinear(
                adapters.b(),
                memory.adapterOfRank(linear),
                memory.scales(linear),
                layout.places().get(i).out(),
                layout.places().get(i).z(),
                adapters.sumOfRanks(),
                linear.out(),
                linear.out() % 8 == 0 && adapters.b() % 16 == 0));
      }
    }
    return new DecodeAddMixture(
        y(memory),
        memory.mixture(group.layer(), rows),
        group.weigher().map(Weigher::bias).orElse(0L),
        memory.inverseTemperature,
        slots(),
        layout.ld(),
        rows,
        model.maxAdapters(),
        layout.weighed(),
        model.isGiven(),
        memory.multiprocessors(),
        mixed);
  }

  private RoutedLinear linear(StepMemory memory, int which) {
    var linear = group.linears().get(which);
    var place = layout.places().get(which);
    var vectors =
        linear.out() % 4 == 0
            && place.out() % 4 == 0
            && linear.adapters().map(a -> a.b() % 16 == 0).orElse(true);
    if (linear.adapters().isEmpty() || model.scores() == Scores.ALL) { // nothing to choose
      return new RoutedLinear(
          0, linear.bias(), 0, 0, 0, 0, place.out(), 0, 0, 0, linear.out(), vectors);
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
        place.out(),
        place.gate(),
        place.z(),
        adapters.count(),
        linear.out(),
        vectors);
  }
}
