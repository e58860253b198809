package org.meteora.cuda.decode;

import java.util.ArrayList;
import java.util.List;
import org.meteora.cuda.driver.Work;

/**
 * A {@link StepProduct} of many rows by cuBLAS: W one by one beside each other, and all gates and A
 * in one product where they lie in one matrix, as a backend stacks them.
 */
final class LibraryProduct extends StepProduct {
  /** Rows of nothing that may lie between two matrices of a stack. */
  private static final int GAP = 8;

  /** A matrix {@code (rows, in)}, and where its product goes in a row of y. */
  private record Part(long address, int rows, int at) {}

  private final DecodeModel model;
  private final List<Part> parts = new ArrayList<>();
  private final int[] gateAt;
  private final int[] zAt;
  private final int ld;

  LibraryProduct(DecodeModel model, InputGroup group, int rows) {
    super(group, rows);
    this.model = model;
    var count = group.linears().size();
    this.gateAt = new int[count];
    this.zAt = new int[count];
    for (var i = 0; i < count; i++) {
      var linear = group.linears().get(i);
      parts.add(new Part(linear.weight(), linear.out(), group.outputs(i)));
    }
    var at = (group.outputs(count) + 3) / 4 * 4;
    this.ld = (stack(at) + 3) / 4 * 4;
  }

  /** Lays out gates and A from {@code at} on; returns the end. */
  private int stack(int at) {
    var rowBytes = (long) group.in() * model.dtype().bytes();
    var stackBegin = Long.MAX_VALUE;
    var stackEnd = 0L;
    var inside = 0;
    var aligned = true;
    for (var linear : group.linears()) {
      if (linear.adapters().isPresent()) {
        var adapters = linear.adapters().get();
        var gateEnd = adapters.gate() + adapters.count() * rowBytes;
        var aEnd = adapters.a() + adapters.sumOfRanks() * rowBytes;
        stackBegin = Math.min(stackBegin, Math.min(adapters.gate(), adapters.a()));
        stackEnd = Math.max(stackEnd, Math.max(gateEnd, aEnd));
        inside += adapters.count() + adapters.sumOfRanks() + GAP;
        aligned &= (adapters.gate() - adapters.a()) % rowBytes == 0;
        aligned &= (adapters.a() - stackBegin) % rowBytes == 0;
      }
    }
    if (inside == 0) {
      return at;
    }
    var isStack = aligned && stackEnd - stackBegin <= inside * rowBytes;
    var stackRows = (int) ((stackEnd - stackBegin) / rowBytes);
    if (isStack) {
      parts.add(new Part(stackBegin, stackRows, at));
    }
    var next = at;
    for (var i = 0; i < gateAt.length; i++) {
      if (group.linears().get(i).adapters().isPresent()) {
        var adapters = group.linears().get(i).adapters().get();
        if (isStack) {
          gateAt[i] = at + (int) ((adapters.gate() - stackBegin) / rowBytes);
          zAt[i] = at + (int) ((adapters.a() - stackBegin) / rowBytes);
        } else {
          gateAt[i] = next;
          parts.add(new Part(adapters.gate(), adapters.count(), next));
          next += (adapters.count() + 3) / 4 * 4;
          zAt[i] = next;
          parts.add(new Part(adapters.a(), adapters.sumOfRanks(), next));
          next += (adapters.sumOfRanks() + 3) / 4 * 4;
        }
      }
    }
    return isStack ? at + stackRows : next;
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
  int gateAt(int which) {
    return gateAt[which];
  }

  @Override
  int zAt(int which) {
    return zAt[which];
  }

  /**
   * @param x (rows, in)
   * @param y float32 (rows, {@link #ld})
   */
  Work work(LibraryProducts library, long x, long y) {
    return library.together(
        parts.stream()
            .filter(part -> part.rows() > 0)
            .map(
                part ->
                    new LibraryProducts.Product(
                        model.dtype(),
                        x,
                        part.address(),
                        y + 4L * part.at(),
                        rows,
                        group.in(),
                        part.rows(),
                        ld))
            .toList());
  }
}
