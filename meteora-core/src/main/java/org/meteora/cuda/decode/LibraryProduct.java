package org.meteora.cuda.decode;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Optional;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.meteora.cuda.driver.Work;
import org.meteora.cuda.kernel.AdapterMemory;
import org.meteora.cuda.kernel.FewColumns;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.cuda.kernel.ManyRowsProduct;
import org.meteora.cuda.kernel.ManyRowsProduct.Matrix;
import org.meteora.cuda.kernel.MaskedAdapters;
import org.meteora.cuda.kernel.MaskedAdapters.DecodeSumRoute;
import org.meteora.cuda.kernel.MaskedAdapters.MaskedLinear;
import org.meteora.cuda.kernel.TiledProduct;
import org.meteora.cuda.kernel.WideProduct;
import org.meteora.nn.Projection.Input;
import org.meteora.nn.Scores;

/**
 * A {@link StepProduct} of many rows: weights that lie one behind the other in memory, as a backend
 * stacks them, are multiplied as one, and so are gates and A; by a launch of our own ({@link
 * ManyRowsProduct}) or, of more rows and where that does not know the product, by cuBLAS beside
 * each other.
 */
final class LibraryProduct extends StepProduct {
  /** A matrix, and where its product goes in a row of y. */
  private record Part(long address, int rows, int at) {}

  /** Gates and A of all linears, which are one matrix, by a launch of our own. */
  private record GatesAndA(Part part, ManyRowsProduct product) {}

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
   * Bytes a second of memory from which products of our own of up to {@link WideProduct#MAX_ROWS}
   * rows do not win: on an H200 (4.9 · 10¹²) 7.15 ms by cuBLAS and 7.5 to 7.9 by an earlier form of
   * them at 32 rows, 8.64 to 8.73 and 9.0 at 64.
   */
  private static final double FAST_MEMORY = 4e12;

  /**
   * Rows of more from which they win without adapters: by cuBLAS and by them 10.46, 10.9 ms a step
   * of Llama-3-8B's shapes at 128 rows on an H100, 15.1, 14.0 at 256 (389 tokens of context).
   */
  private static final int MIN_BASE_ROWS = 129;

  /**
   * The part of all gates and A of a product of our own, where the blocks that multiply it are done
   * before the others, so that the choice is made while these are at work.
   */
  private record Early(WideProduct wide, int part, int blocks) {}

  private final Kernels kernels;
  private final List<Part> parts;
  private final Optional<ManyRowsProduct> own;
  private final Optional<GatesAndA> gatesAndA;
  private final boolean canFuse;
  private final Optional<Early> early;

  LibraryProduct(Kernels kernels, DecodeModel model, InputGroup group, int rows) {
    var parts = new ArrayList<Part>();
    var at = new HashMap<Long, Integer>();
    var rowBytes = (long) group.in() * model.dtype().bytes();
    for (var matrix : group.matrices()) {
      var last = parts.isEmpty() ? null : parts.getLast();
      if (last != null
          && matrix.address() == last.address() + last.rows() * rowBytes
          && isWeight(group, matrix.address()) == isWeight(group, last.address())) {
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
    var all = parts.stream().map(LibraryProduct::matrix);
    this.own =
        isForOwn(kernels, model, rows)
            ? ManyRowsProduct.of(kernels, all.toList(), group.in(), rows)
            : Optional.empty();
    this.gatesAndA = ofGatesAndA();
    this.canFuse =
        group.input() == Input.MLP
            && own.filter(TiledProduct.class::isInstance).isPresent()
            && TiledProduct.takesSiluUp(kernels, gateUp(), group.in(), rows, List.of(b(0), b(1)))
            && (group.ranks(2) == 0 || gatesAndA.isPresent());
    this.early = early();
  }

  /** Whether products of our own are the quicker ones, where they take what is to be multiplied. */
  static boolean isForOwn(Kernels kernels, DecodeModel model, int rows) {
    if (rows <= WideProduct.MAX_ROWS) {
      return kernels.cuda().memoryRate() < FAST_MEMORY;
    }
    return rows >= MIN_BASE_ROWS
        || model.layers().stream()
            .flatMap(layer -> layer.linears().stream())
            .anyMatch(linear -> linear.adapters().isPresent());
  }

  private static boolean isWeight(InputGroup group, long address) {
    return group.linears().stream().anyMatch(linear -> linear.weight() == address);
  }

  /** In eights, as {@link ManyRowsProduct} wants it. */
  private static int whole(int columns) {
    return (columns + 7) / 8 * 8;
  }

  private Optional<Early> early() {
    if (!isMasked() || !(own.orElse(null) instanceof WideProduct wide)) {
      return Optional.empty();
    }
    return IntStream.range(0, parts.size())
        .filter(i -> isOfAdapters(parts.get(i)) && isWhole(parts.get(i)))
        .mapToObj(i -> new Early(wide, i, wide.earlyBlocks(i)))
        .filter(it -> it.blocks > 0)
        .findFirst();
  }

  /** Blocks that have done all gates and A before the product ends. */
  @Override
  int gateTiles() {
    return early.map(Early::blocks).orElse(0);
  }

  /** Whether it is a launch of our own. */
  boolean isOwn() {
    return own.isPresent();
  }

  @Override
  int slots() {
    return isFused() ? 1 : own.map(ManyRowsProduct::slots).orElse(1);
  }

  /** Floats of scratch memory. */
  long scratchFloats() {
    return productFloats() + (isMasked() ? coefficientBytes(0) + coefficientBytes(1) : 0) / 4;
  }

  /** Floats of scratch memory of the products of gates and A, in whole fours. */
  private long productFloats() {
    if (isFused()) {
      return gatesAndA
          .map(it -> (long) it.product.slots() * rows * it.part.rows() + 3 & -4)
          .orElse(0L);
    }
    return own.isPresent()
        ? 0
        : ofAdapters().mapToLong(part -> fewColumns(part).scratchFloats()).max().orElse(0);
  }

  private List<Matrix> gateUp() {
    return group.linears().stream().map(l -> new Matrix(l.weight(), l.out())).toList();
  }

  private Optional<GatesAndA> ofGatesAndA() {
    return ofAdapters()
        .filter(part -> isWhole(part) && part.rows() % 2 == 0)
        .findFirst()
        .flatMap(
            part ->
                ManyRowsProduct.of(kernels, List.of(matrix(part)), group.in(), rows)
                    .map(product -> new GatesAndA(part, product)));
  }

  /** Whether a part is all gates and A. */
  private boolean isWhole(Part part) {
    var count = group.linears().size();
    return part.rows() == group.gates(count) + group.ranks(count);
  }

  private static Matrix matrix(Part part) {
    return new Matrix(part.address(), part.rows());
  }

  /**
   * Whether gate and up are one launch with what follows ({@link #siluUp}), for which {@link #work}
   * leaves their adapters' coefficients.
   */
  boolean isFused() {
    return canFuse && (isMasked() || !group.mixes());
  }

  /** Behind {@link #work}: SiLU of gate times up, both with their adapters. */
  Work siluUp(StepMemory memory, boolean overlap) {
    return TiledProduct.siluUp(
        kernels, x(memory), gateUp(), masked(memory), memory.activated, group.in(), rows, overlap);
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
    if (isFused()) {
      return isMasked() ? routed(memory, overlap) : stream -> {};
    }
    if (own.isPresent()) {
      if (!isMasked()) {
        return own.get().launch(x, y, layout.ld(), overlap);
      }
      var done = memory.gateTilesDone(group);
      var all =
          early
              .map(it -> it.wide.launch(x, y, layout.ld(), overlap, it.part, done))
              .orElseGet(() -> own.get().launch(x, y, layout.ld(), overlap));
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

  private Work routed(StepMemory memory, boolean overlap) {
    var part = gatesAndA.orElseThrow().part;
    var product = gatesAndA.orElseThrow().product;
    var few = product.launch(x(memory), memory.sliced, part.rows(), overlap);
    var route = sumRoute(memory, y(memory) + 4L * part.at(), part.rows(), product.slots(), overlap);
    return stream -> {
      few.on(stream);
      route.on(stream);
    };
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
            slices,
            isFused()),
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
        && (own.isPresent() ? canFuse || own.get().slots() == 1 : isStagedWhole())
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
    return FewColumns.isStaged(kernels, rows)
        && ofAdapters().count() == 1
        && ofAdapters().allMatch(this::isWhole);
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
