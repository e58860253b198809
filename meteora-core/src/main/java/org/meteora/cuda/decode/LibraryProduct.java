package org.meteora.cuda.decode;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.meteora.cuda.driver.Work;
import org.meteora.cuda.kernel.FewColumns;
import org.meteora.cuda.kernel.Kernels;

/**
 * A {@link StepProduct} of many rows by cuBLAS: matrices that lie one behind the other in memory,
 * as a backend stacks them, are multiplied as one; what is left, beside each other.
 */
final class LibraryProduct extends StepProduct {
  /** A matrix {@code (rows, in)}. */
  private record Matrix(long address, int rows) {}

  /** A matrix, and where its product goes in a row of y. */
  private record Part(long address, int rows, int at) {}

  private final List<Part> parts = new ArrayList<>();
  private final Map<Long, Integer> at = new HashMap<>();
  private final int ld;

  LibraryProduct(DecodeModel model, InputGroup group, int rows) {
    super(model, group, rows);
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
    var rowBytes = (long) group.in() * model.dtype().bytes();
    for (var matrix : matrices) {
      var last = parts.isEmpty() ? null : parts.getLast();
      if (last != null && matrix.address() == last.address() + last.rows() * rowBytes) {
        parts.removeLast();
        parts.add(new Part(last.address(), last.rows() + matrix.rows(), last.at()));
        at.put(matrix.address(), last.at() + last.rows());
      } else {
        var column = last == null ? 0 : (last.at() + last.rows() + 3) / 4 * 4;
        parts.add(new Part(matrix.address(), matrix.rows(), column));
        at.put(matrix.address(), column);
      }
    }
    this.ld = (parts.getLast().at() + parts.getLast().rows() + 3) / 4 * 4;
  }

  @Override
  int partials() {
    return 0; // inputs are whole
  }

  @Override
  int ld() {
    return ld;
  }

  @Override
  int slots() {
    return 1;
  }

  @Override
  int gateTiles() {
    return 0;
  }

  @Override
  boolean leavesSpread() {
    return false;
  }

  @Override
  int outAt(int which) {
    return at.get(group.linears().get(which).weight());
  }

  @Override
  int gateAt(int which) {
    return group.linears().get(which).adapters().map(a -> at.getOrDefault(a.gate(), 0)).orElse(0);
  }

  @Override
  int weighedAt() {
    return group.weigher().map(w -> at.get(w.weight())).orElse(0);
  }

  @Override
  int zAt(int which) {
    return group.linears().get(which).adapters().map(a -> at.getOrDefault(a.a(), 0)).orElse(0);
  }

  /** Floats of scratch memory. */
  long scratchFloats(Kernels kernels) {
    return parts.stream()
        .filter(part -> isOfAdapters(kernels, part))
        .mapToLong(part -> FewColumns.scratchFloats(rows, part.rows(), group.in()))
        .max()
        .orElse(0);
  }

  /** Whether a part is gates and A alone, which a kernel of our own multiplies. */
  private boolean isOfAdapters(Kernels kernels, Part part) {
    return group.linears().stream().noneMatch(linear -> contains(part, linear.weight()))
        && FewColumns.takes(kernels, part.address(), part.rows(), group.in());
  }

  private boolean contains(Part part, long address) {
    var bytes = (long) part.rows() * group.in() * model.dtype().bytes();
    return address >= part.address() && address < part.address() + bytes;
  }

  /**
   * @param x (rows, in)
   * @param y float32 (rows, {@link #ld})
   */
  Work work(Kernels kernels, StepMemory memory, LibraryProducts library, long x, long y) {
    var products = new ArrayList<LibraryProducts.Product>();
    var beside = new ArrayList<Work>();
    for (var part : parts) {
      var to = y + 4L * part.at();
      if (isOfAdapters(kernels, part)) {
        beside.addAll(
            FewColumns.launches(
                kernels, x, part.address(), to, memory.sliced, rows, part.rows(), group.in(), ld));
      } else {
        products.add(
            new LibraryProducts.Product(
                model.dtype(), x, part.address(), to, rows, group.in(), part.rows(), ld));
      }
    }
    return library.together(products, beside);
  }
}
