package org.meteora.backend.cuda;

import ai.djl.ndarray.NDArray;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.UUID;
import java.util.stream.IntStream;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.kernel.AdapterKernels;
import org.meteora.cuda.kernel.AdapterMemory;
import org.meteora.moe.BankLayout;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.Router;
import org.meteora.moe.ScoredBank;
import org.meteora.tensor.Ops;

/**
 * The adapters of gated linears with one input by CUDA kernels of our own, at inference, on
 * libtorch's stream: for up to {@link org.meteora.cuda.kernel.MatrixVector#MAX_ROWS} tokens one
 * product with all gates and A and one launch that routes and adds; for more, a launch that masks z
 * = x Aᵀ between two of libtorch's products. Its device memory goes with the manager of the
 * adapters. Its scratch serves one pass at a time: what a pass queues is queued under its lock, on
 * one stream.
 */
final class FusedInference implements AutoCloseable {
  private static final Stream LIBTORCH = Stream.of(0);

  private final List<GatedLinear> linears;
  private final Router.Scoring router;
  private final List<ScoredBank> banks;
  private final NDArray stacked;
  private final boolean ownsStack;
  private final long[] loraB;
  private final AdapterKernels kernels;
  private final Cuda cuda;
  private final String id = UUID.randomUUID().toString();
  private boolean closed;

  /**
   * @param linears one to three with adapters, on a CUDA device
   * @param router chooses among them
   * @param stacked their A and gates, as {@link BankLayout#stack} laid them; null: make such a one
   * @throws org.meteora.UserException for what the kernels do not know
   */
  FusedInference(List<GatedLinear> linears, Router.Scoring router, NDArray stacked, int topK) {
    this.linears = linears;
    this.router = router;
    this.banks = linears.stream().map(router::forKernels).toList();
    this.ownsStack = stacked == null;
    this.stacked = ownsStack ? stack() : stacked;
    this.loraB = addressesOfB();
    int in = (int) this.stacked.getShape().get(1);
    cuda = Cuda.device(this.stacked.getDevice().getDeviceId());
    cuda.makeCurrent();
    long first = Ops.dataPointer(this.stacked);
    long row = (long) in * Ops.dtype(this.stacked).bytes();
    var targets = new ArrayList<AdapterKernels.Target>();
    for (int i = 0; i < loraB.length; i++) {
      var bank = linears.get(i).bank();
      var scales = new float[bank.size()];
      for (int j = 0; j < scales.length; j++) {
        scales[j] = (float) banks.get(i).scales()[j];
      }
      targets.add(
          new AdapterKernels.Target(
              new AdapterMemory(
                  gateRows(i) == 0 ? 0 : first + row * gateAt(i),
                  first + row * rankAt(i),
                  loraB[i],
                  bank.ranks(),
                  scales),
              (int) linears.get(i).weight().getShape().get(0)));
    }
    var scores = banks.getFirst().scores();
    try {
      kernels =
          new AdapterKernels(cuda, Ops.dtype(this.stacked), scores, topK, in, targets, LIBTORCH);
    } catch (RuntimeException | Error e) {
      closeStack();
      throw e;
    }
    this.stacked.getManager().attachInternal(id, this);
  }

  /** As {@link BankLayout#stack} does, of copies. */
  private NDArray stack() {
    var linear = linears.getFirst();
    var manager = linear.bank().loraA().getManager();
    var dtype = Ops.dtype(linear.weight());
    int rows = AdapterKernels.columns(gateAt(linears.size()));
    var all = Ops.zeros(manager, dtype, rows, linear.weight().getShape().get(1));
    for (int i = 0; i < linears.size(); i++) {
      int ranks = linears.get(i).bank().totalRank();
      try (var view = Ops.narrow(all, 0, rankAt(i), ranks)) {
        Ops.copy(view, banks.get(i).loraA());
      }
      if (gateRows(i) > 0) {
        try (var view = Ops.narrow(all, 0, gateAt(i), gateRows(i))) {
          Ops.copy(view, banks.get(i).gate());
        }
      }
    }
    return all;
  }

  private int gateRows(int linear) {
    return banks.get(linear).gate() == null ? 0 : linears.get(linear).bank().size();
  }

  private long[] addressesOfB() {
    return linears.stream()
        .mapToLong(linear -> Ops.dataPointer(router.forKernels(linear).loraBTransposed()))
        .toArray();
  }

  /** Whether this is for B as it is now. */
  boolean isCurrent() {
    return Arrays.equals(loraB, addressesOfB());
  }

  /**
   * Adds the adapters' part for few tokens.
   *
   * @param x {@code (tokens, in)}
   * @param y each linear's base product, {@code (tokens, out)} in memory; changed
   * @param choices as {@link AdapterKernels#routeAndAdd} takes them
   */
  synchronized void routeAndAdd(NDArray x, List<NDArray> y, double temperature, long[] choices) {
    cuda.makeCurrent();
    try (var rows = Ops.contiguous(x)) {
      kernels.routeAndAdd(
          Ops.dataPointer(rows),
          y.stream().mapToLong(Ops::dataPointer).toArray(),
          (int) x.getShape().get(0),
          choices,
          temperature,
          LIBTORCH);
    }
  }

  /**
   * All linears' z, scaled by weight · scale and zero for adapters not chosen, and their logits.
   *
   * @param x {@code (tokens, in)}
   * @param choices as for few
   * @return as {@link AdapterKernels#scaleForPrefill} leaves it; {@link #z} and {@link #logits} are
   *     views
   */
  synchronized NDArray masked(NDArray x, double temperature, long[] choices) {
    cuda.makeCurrent();
    var rows = Ops.linear(x, stacked, null);
    try (var input = Ops.contiguous(x)) {
      kernels.scaleForPrefill(
          Ops.dataPointer(rows),
          Ops.dataPointer(input),
          x.getShape().get(0),
          choices,
          temperature,
          LIBTORCH);
    }
    return rows;
  }

  /** A linear's B {@code (out, Σr)}, to be multiplied by its masked z; stays the bank's. */
  NDArray loraB(int linear) {
    return banks.get(linear).loraB();
  }

  /** A linear's masked z {@code (tokens, Σr)}. */
  NDArray z(NDArray masked, int linear) {
    return Ops.narrow(masked, 1, rankAt(linear), linears.get(linear).bank().totalRank());
  }

  /** A linear's logits {@code (tokens, N)}. */
  NDArray logits(NDArray masked, int linear) {
    return Ops.narrow(masked, 1, gateAt(linear), linears.get(linear).bank().size());
  }

  /** Where a linear's A begins in the stack. */
  private int rankAt(int linear) {
    return linears.subList(0, linear).stream().mapToInt(each -> each.bank().totalRank()).sum();
  }

  /** Where a linear's gate begins in the stack, behind all A. */
  private int gateAt(int linear) {
    return rankAt(linears.size()) + IntStream.range(0, linear).map(this::gateRows).sum();
  }

  @Override
  public void close() {
    if (!closed) {
      closed = true;
      stacked.getManager().detachInternal(id);
      kernels.close();
      closeStack();
    }
  }

  private void closeStack() {
    if (ownsStack) {
      stacked.close();
    }
  }
}
