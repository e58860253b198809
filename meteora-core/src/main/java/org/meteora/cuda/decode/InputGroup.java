package org.meteora.cuda.decode;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Optional;
import java.util.function.ToIntFunction;
import org.meteora.cuda.decode.DecodeModel.Linear;
import org.meteora.cuda.decode.DecodeModel.Weigher;
import org.meteora.cuda.kernel.AdapterMemory;
import org.meteora.cuda.kernel.ManyRowsProduct.Matrix;
import org.meteora.nn.Projection;

/**
 * The linears of a layer that read the same input, and so are multiplied together.
 *
 * @param first the first one's number in the layer
 * @param weigher the layer's, which reads the input of q, k and v
 */
record InputGroup(int layer, int first, List<Linear> linears, Optional<Weigher> weigher) {
  static InputGroup of(DecodeModel model, int layer, Projection.Input input) {
    var all = model.layers().get(layer);
    var reading = input.readers().stream().map(Projection::ordinal).toList();
    var weigher = input == Projection.Input.ATTENTION ? all.weigher() : Optional.<Weigher>empty();
    var linears = reading.stream().map(all.linears()::get).toList();
    return new InputGroup(layer, reading.getFirst(), linears, weigher);
  }

  /** Of all layers' those that differ in what the form of their product goes by. */
  static List<InputGroup> different(DecodeModel model) {
    var groups = new LinkedHashMap<Object, InputGroup>();
    for (var layer = 0; layer < model.layers().size(); layer++) {
      for (var input : Projection.Input.values()) {
        var group = of(model, layer, input);
        groups.putIfAbsent(group.shape((long) group.in() * model.dtype().bytes()), group);
      }
    }
    return List.copyOf(groups.values());
  }

  /** All that is multiplied with the input, as it lies in memory. */
  List<Matrix> matrices() {
    var all = inOrder();
    all.sort(Comparator.comparingLong(Matrix::address));
    return all;
  }

  private List<Matrix> inOrder() {
    var all = new ArrayList<Matrix>();
    for (var linear : linears) {
      all.add(new Matrix(linear.weight(), linear.out()));
      if (linear.adapters().isPresent()) {
        var its = linear.adapters().get();
        all.add(new Matrix(its.gate(), its.gateRows()));
        all.add(new Matrix(its.a(), its.sumOfRanks()));
      }
    }
    weigher.ifPresent(its -> all.add(new Matrix(its.weight(), its.adapters())));
    all.removeIf(matrix -> matrix.rows() == 0);
    return all;
  }

  /**
   * What the form of its product goes by: equal for groups of different layers whose matrices are
   * alike and lie alike.
   *
   * @param rowBytes of a matrix
   */
  List<Object> shape(long rowBytes) {
    var shape = new ArrayList<Object>(List.of(first, weighed()));
    for (var linear : linears) {
      shape.add(linear.adapters().map(its -> List.of(its.count(), its.maxRank(), its.b() % 16)));
    }
    var lying = matrices();
    inOrder().forEach(matrix -> shape.add(lying.indexOf(matrix)));
    var end = 0L;
    for (var matrix : lying) {
      shape.addAll(List.of(matrix.rows(), matrix.address() % 16, matrix.address() == end));
      end = matrix.address() + matrix.rows() * rowBytes;
    }
    return shape;
  }

  Projection.Input input() {
    return Projection.values()[first].input();
  }

  /** Elements of the input. */
  int in() {
    return linears.getFirst().in();
  }

  /** Outputs of the first {@code count} linears. */
  int outputs(int count) {
    return sum(count, Linear::out);
  }

  /** Rows of gates of the first {@code count} linears. */
  int gates(int count) {
    return sum(count, linear -> linear.adapters().map(AdapterMemory::gateRows).orElse(0));
  }

  /** Rows of the weigher. */
  int weighed() {
    return weigher.map(Weigher::adapters).orElse(0);
  }

  /** Whether it has adapters, or weighs them for others. */
  boolean mixes() {
    return weigher.isPresent() || ranks(linears.size()) > 0;
  }

  /** Rows of A of the first {@code count} linears. */
  int ranks(int count) {
    return sum(count, linear -> linear.adapters().map(AdapterMemory::sumOfRanks).orElse(0));
  }

  private int sum(int count, ToIntFunction<Linear> rows) {
    return linears.stream().limit(count).mapToInt(rows).sum();
  }
}
