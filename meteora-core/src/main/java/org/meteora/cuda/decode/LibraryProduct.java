package org.meteora.cuda.decode;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.List;
import java.util.Optional;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.meteora.cuda.driver.Work;
import org.meteora.cuda.kernel.AdapterMemory;
import org.meteora.cuda.kernel.FewColumns;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.cuda.kernel.MaskedAdapters;
import org.meteora.cuda.kernel.MaskedAdapters.DecodeSumRoute;
import org.meteora.cuda.kernel.MaskedAdapters.MaskedLinear;
import org.meteora.cuda.kernel.WideProduct;
import org.meteora.cuda.kernel.WideProduct.Matrix;
import org.meteora.nn.Projection.Input;
import org.meteora.nn.Scores;

/**
 * A {@link StepProduct} of many rows: matrices that lie one behind the other in memory, as a
 * backend stacks them, are multiplied as one; by a launch of our own ({@link WideProduct}) or, of
 * more rows and where that does not know the product, by cuBLAS beside each other.
 */
final class LibraryProduct extends StepProduct {
  /** A matrix, and where its product goes in a row of y. */
  private record Part(long address, int rows, int at) {}

  /**
   * Choices that fall on an adapter, rows times k over adapters, from which gate's and up's
   * adapters are masked, where gates and A are staged ({@link FewColumns#isStaged}). A step of
   * Llama-3-8B's shapes with 28 adapters of rank 8 and k 2 on an H100, with every row's own B read
   * and masked: 13.74, 13.40 ms at 128 rows (9.1 choices), 20.33, 19.79 at 256; a later form of the
   * masked kernel takes 0.35 and 0.60 less. So it is on from 96 rows (6.9), which is not measured
   * but has as many blocks as 128.
   */
  private static final int MASKED_CHOICES = 6;

  /** The same behind a product of our own, which has left the gates' logits and z in y. */
  private static final int MASKED_CHOICES_BEHIND_OWN = 4;

  /**
   * Rows from which products of our own win: a step of Llama-3-8B's shapes with 28 adapters of rank
   * 8 on an H100 by cuBLAS and by them 8.30, 8.35 ms at 17 rows, 8.77, 8.61 at 32, 10.61, 10.12 at
   * 64; 128 rows, which they do not take, 13.40, 13.41. The base model's are slower by them: 7.50,
   * 7.83 at 32 and 8.92, 9.18 at 64.
   */
  private static final int MIN_OWN_ROWS = 32;

  /**
   * Bytes a second of memory from which they do not: on an H200 (4.9 · 10¹²) 7.15 ms by cuBLAS and
   * 7.5 to 7.9 by them at 32 rows, 8.64 to 8.73 and 9.0 at 64.
   */
  private static final double FAST_MEMORY = 4e12;

  private final Kernels kernels;
  private final List<Part> parts;
  private final Optional<WideProduct> own;

  LibraryProduct(Kernels kernels, DecodeModel model, InputGroup group, int rows) {
    var matrices = new ArrayList<Matrix>();
    for (var linear : group.linears()) {
      matrices.add(new Matrix(linear.weight(), linear.out()));
      linear
          .adapters()
          .ifPresent(
              adapters -> {
                matrices.add(new Matrix(adapters.gate(), adapters.gateRows()));
                matrices.add(new Matrix(adapters.a(), adapters.sumOfRanks()));
              });
    }
    group.weigher().ifPresent(w -> matrices.add(new Matrix(w.weight(), w.adapters())));
    matrices.removeIf(matrix -> matrix.rows() == 0);
    matrices.sort(Comparator.comparingLong(Matrix::address));
    var parts = new ArrayList<Part>();
    var at = new HashMap<Long, Integer>();
    var rowBytes = (long) group.in() * model.dtype().bytes();
    for (var matrix : matrices) {
      var last = parts.isEmpty() ? null : parts.getLast();
      if (last != null && matrix.address() == last.address() + last.rows() * rowBytes) {
        parts.removeLast();
        parts.add(new Part(last.address(), last.rows() + matrix.rows(), last.at()));
        at.put(matrix.address(), last.at() + last.rows());
      } else {
        var column = last == null ? 0 : whole(last.at() + last.rows());
        parts.add(new Part(matrix.address(), matrix.rows(), column));
        at.put(matrix.address(), column);
      }
    }
    var places =
        group.linears().stream()
            .map(
                linear -> {
                  var adapters = linear.adapters();
                  return new Place(
                      at.get(linear.weight()),
                      adapters.map(a -> at.getOrDefault(a.gate(), 0)).orElse(0),
                      adapters.map(a -> at.getOrDefault(a.a(), 0)).orElse(0));
                });
    super(
        model,
        group,
        rows,
        new Layout(
            whole(parts.getLast().at() + parts.getLast().rows()),
            places.toList(),
            group.weigher().map(w -> at.get(w.weight())).orElse(0)));
    this.kernels = kernels;
    this.parts = parts;
    var all = parts.stream().map(part -> new Matrix(part.address(), part.rows()));
    this.own =
        isForOwn(kernels, model, rows)
            ? WideProduct.of(kernels, all.toList(), group.in(), rows)
            : Optional.empty();
  }

  /** Whether products of our own are the quicker ones, where they take what is to be multiplied. */
  static boolean isForOwn(Kernels kernels, DecodeModel model, int rows) {
    return rows >= MIN_OWN_ROWS
        && kernels.cuda().memoryRate() < FAST_MEMORY
        && model.layers().stream()
            .flatMap(layer -> layer.linears().stream())
            .anyMatch(linear -> linear.adapters().isPresent());
  }

  /** In eights, as {@link WideProduct} wants it. */
  private static int whole(int columns) {
    return (columns + 7) / 8 * 8;
  }

  /** Whether it is a launch of our own. */
  boolean isOwn() {
    return own.isPresent();
  }

  @Override
  int slots() {
    return own.map(WideProduct::slots).orElse(1);
  }

  /** Floats of scratch memory. */
  long scratchFloats() {
    return productFloats() + (isMasked() ? coefficientBytes(0) + coefficientBytes(1) : 0) / 4;
  }

  /** Floats of scratch memory of the products of gates and A. */
  private long productFloats() {
    return own.isPresent()
        ? 0
        : ofAdapters().mapToLong(part -> fewColumns(part).scratchFloats()).max().orElse(0);
  }

  private Stream<Part> ofAdapters() {
    return parts.stream().filter(this::isOfAdapters);
  }

  /** Whether a part is gates and A alone, which a kernel of our own multiplies. */
  private boolean isOfAdapters(Part part) {
    return group.linears().stream().noneMatch(linear -> contains(part, linear.weight()))
        && FewColumns.takes(kernels, part.address(), part.rows(), group.in());
  }

  private FewColumns fewColumns(Part part) {
    return new FewColumns(kernels, rows, part.rows(), group.in());
  }

  private boolean contains(Part part, long address) {
    var bytes = (long) part.rows() * group.in() * model.dtype().bytes();
    return address >= part.address() && address < part.address() + bytes;
  }

  /**
   * @param overlap programmatic dependent launch, of a launch of our own
   */
  Work work(StepMemory memory, LibraryProducts library, boolean overlap) {
    var x = x(memory);
    var y = y(memory);
    if (own.isPresent()) {
      var all = own.get().launch(x, y, layout.ld(), overlap);
      if (!isMasked()) {
        return all;
      }
      var route = sumRoute(memory, 0, 0, 0, overlap);
      return stream -> {
        all.on(stream);
        route.on(stream);
      };
    }
    var products = new ArrayList<LibraryProducts.Product>();
    var beside = new ArrayList<Work>();
    for (var part : parts) {
      var to = y + 4L * part.at();
      if (!isOfAdapters(part)) {
        products.add(
            new LibraryProducts.Product(
                model.dtype(), x, part.address(), to, rows, group.in(), part.rows(), layout.ld()));
      } else if (isMasked()) {
        var few = fewColumns(part);
        beside.add(few.parts(x, part.address(), memory.sliced));
        beside.add(sumRoute(memory, to, part.rows(), few.slices(), false));
      } else {
        beside.addAll(fewColumns(part).launches(x, part.address(), to, memory.sliced, layout.ld()));
      }
    }
    return library.together(products, beside);
  }

  private Work sumRoute(StepMemory memory, long to, int columns, int slices, boolean overlap) {
    return MaskedAdapters.sumRoute(
        kernels,
        new DecodeSumRoute(
            output(memory, 0, 0),
            linears(memory),
            masked(memory),
            memory.sliced,
            to,
            columns,
            slices),
        overlap);
  }

  /**
   * Whether {@link #work} leaves coefficients for whole B instead of the choice to be made: of gate
   * and up, when all their gates and A are one product of our own.
   */
  boolean isMasked() {
    var count = group.linears().size();
    return group.input() == Input.MLP
        && model.scores() != Scores.ALL // another kernel reads whole B
        && group.ranks(count) > 0
        && (isOwn() ? slots() == 1 : isStagedWhole())
        && rows * model.topK()
            >= (isOwn() ? MASKED_CHOICES_BEHIND_OWN : MASKED_CHOICES) * model.maxAdapters()
        && IntStream.range(0, count)
            .allMatch(
                i ->
                    MaskedAdapters.takes(
                        layout.places().get(i).out(),
                        group.linears().get(i).out(),
                        layout.ld(),
                        b(i)));
  }

  /** Whether all gates and A are one product beside W's, by way of shared memory. */
  private boolean isStagedWhole() {
    var count = group.linears().size();
    return FewColumns.isStaged(kernels, rows)
        && ofAdapters().count() == 1
        && ofAdapters().allMatch(part -> part.rows() == group.gates(count) + group.ranks(count));
  }

  private long b(int which) {
    return group.linears().get(which).adapters().map(AdapterMemory::b).orElse(0L);
  }

  /** Elements of a row of a linear's coefficients. */
  private int stride(int which) {
    return MaskedAdapters.stride(group.ranks(which + 1) - group.ranks(which));
  }

  private long coefficientBytes(int which) {
    return (long) MaskedAdapters.coefficientRows(rows) * stride(which) * model.dtype().bytes();
  }

  /** Gate and up with their coefficients, which lie behind what the product needs to be made. */
  List<MaskedLinear> masked(StepMemory memory) {
    var coefficients = memory.sliced + 4 * productFloats(); // in whole 16 bytes, as rows are
    var result = new ArrayList<MaskedLinear>();
    for (var i = 0; i < 2; i++) {
      var linear = group.linears().get(i);
      result.add(
          new MaskedLinear(
              b(i),
              linear.bias(),
              coefficients,
              layout.places().get(i).out(),
              linear.out(),
              group.ranks(i + 1) - group.ranks(i),
              stride(i)));
      coefficients += coefficientBytes(i);
    }
    return result;
  }
}
