package org.meteora.moe;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import org.meteora.lora.AdapterBank;
import org.meteora.nn.Scores;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * An {@link AdapterBank} with the small tables that the forward strategies index by adapter, and Bᵀ
 * where it may be kept.
 *
 * <p>Tables are made once, owned by the manager of the layer's parameters. Bᵀ is a view while
 * adapters are being trained, and otherwise row-major (so that a chosen rank is one contiguous
 * row): what the bank's B is a view of, or a copy made at first use, until the next training pass.
 * {@link #stack} puts A and gates of several banks into one matrix.
 */
public final class BankLayout {
  /** Products run at full speed where a row of the result is whole 16 bytes. */
  private static final int COLUMNS = 8;

  private final AdapterBank bank;
  private final NDArray rows;
  private final NDArray rowScales;
  private final NDArray expansion;
  private final float[] scales;
  private final int[] offsets;
  private final NDManager manager;
  private final Dtype dtype;
  private volatile NDArray loraBTransposed;
  private NDArray stacked;
  private List<BankLayout> stackedWith;

  /** What the forms derive from a bank, in the manager's memory. */
  public BankLayout(NDManager manager, AdapterBank bank, Dtype dtype) {
    this.bank = bank;
    this.manager = manager;
    this.dtype = dtype;
    int n = bank.size();
    int maxRank = Math.max(1, bank.maxRank());
    offsets = bank.offsets();
    scales = new float[n];
    var rowTable = new long[n * maxRank];
    var scaleTable = new float[n * maxRank];
    var expand = new float[n * Math.max(1, bank.totalRank())];
    for (int i = 0; i < n; i++) {
      scales[i] = (float) bank.scales()[i];
      for (int r = 0; r < bank.ranks()[i]; r++) {
        rowTable[i * maxRank + r] = offsets[i] + r;
        scaleTable[i * maxRank + r] = scales[i];
        expand[i * bank.totalRank() + offsets[i] + r] = scales[i];
      }
    }
    rows = Ops.of(manager, rowTable, n, maxRank);
    rowScales = Ops.of(manager, scaleTable, n, maxRank);
    expansion = Ops.of(manager, expand, n, Math.max(1, bank.totalRank()));
  }

  /** The adapters. */
  public AdapterBank bank() {
    return bank;
  }

  /** A {@code (Σr, in)}. */
  public NDArray loraA() {
    return bank.loraA();
  }

  /** B {@code (out, Σr)}. */
  public NDArray loraB() {
    return bank.loraB();
  }

  /** What was kept of the parameters is made anew at the next use. */
  public synchronized void parametersMayChange() {
    if (loraBTransposed != null) {
      loraBTransposed.close();
      loraBTransposed = null;
    }
  }

  /** Bᵀ {@code (Σr, out)}. */
  public NDArray loraBTransposed(boolean trainable) {
    if (trainable) {
      return Ops.transpose(bank.loraB(), 0, 1);
    }
    var kept = loraBTransposed;
    return kept == null ? keepBTransposed() : kept;
  }

  /** These adapters for kernels, with a matrix that scores them. */
  public ScoredBank scored(Scores scores, NDArray gate) {
    return new ScoredBank(scores, gate, bank.loraA(), bank.loraB(), loraBTransposed(false), scales);
  }

  private synchronized NDArray keepBTransposed() {
    if (loraBTransposed == null) {
      var view = Ops.transpose(bank.loraB(), 0, 1);
      if (Ops.dtype(view) == dtype && Ops.isRowMajor(view)) {
        loraBTransposed = view;
      } else {
        loraBTransposed = Ops.copyOf(view, manager, dtype);
        view.close();
      }
    }
    return loraBTransposed;
  }

  /** Whether {@link #stack} takes these: none is in a stack with others. */
  public static boolean canStack(List<BankLayout> layouts) {
    return layouts.stream()
        .allMatch(layout -> layout.stacked == null || layout.stackedWith.equals(layouts));
  }

  /**
   * Puts A and gates of banks into one matrix, of which the banks' arrays become views; their own
   * memory is given back. A bank that is in a stack already can only be in the same again.
   *
   * @param layouts with gates, all or none
   * @return {@code (rows, in)}: all A, then all gates, and zeros up to whole rows of the product's
   *     result
   */
  public static NDArray stack(List<BankLayout> layouts) {
    var first = layouts.getFirst();
    if (first.stacked != null && first.stackedWith.equals(layouts)) {
      return first.stacked;
    }
    if (!canStack(layouts)) {
      throw new IllegalStateException("a linear can share its input with one group alone");
    }
    var parts = new ArrayList<NDArray>();
    layouts.forEach(layout -> parts.add(layout.loraA()));
    layouts.stream().map(layout -> layout.bank.gate()).filter(Objects::nonNull).forEach(parts::add);
    long in = first.loraA().getShape().get(1);
    long rows = parts.stream().mapToLong(part -> part.getShape().get(0)).sum();
    var all = Ops.zeros(first.manager, first.dtype, (rows + COLUMNS - 1) / COLUMNS * COLUMNS, in);
    long from = 0;
    for (var part : parts) {
      long count = part.getShape().get(0);
      if (count > 0) {
        try (var view = Ops.narrow(all, 0, from, count)) {
          Ops.copy(view, part);
          Ops.share(part, view);
        }
      }
      from += count;
    }
    for (var layout : layouts) {
      layout.stacked = all;
      layout.stackedWith = List.copyOf(layouts);
    }
    return all;
  }

  /** Whether gate and A are what code that reads memory takes: the layer's dtype, row-major. */
  public boolean isPlain() {
    return isPlain(bank.gate()) && isPlain(bank.loraA());
  }

  /** As {@link #isPlain}, and B as well. */
  public boolean isPlainInTraining() {
    return isPlain() && isPlain(bank.loraB());
  }

  private boolean isPlain(NDArray array) {
    return array == null || Ops.dtype(array) == dtype && Ops.isRowMajor(array);
  }

  /** {@code (N, r_max)} int64: the row of A of each adapter's each rank; 0 beyond its rank. */
  public NDArray rows() {
    return rows;
  }

  /** {@code (N, r_max)} float32: the adapter's scale, 0 beyond its rank. */
  public NDArray rowScales() {
    return rowScales;
  }

  /** {@code (N, Σr)} float32: the adapter's scale in its own columns, 0 elsewhere. */
  public NDArray expansion() {
    return expansion;
  }

  /** Where an adapter's rows of A, columns of B, begin. */
  public long offset(int adapter) {
    return offsets[adapter];
  }

  /** An adapter's r. */
  public int rank(int adapter) {
    return bank.ranks()[adapter];
  }
}
