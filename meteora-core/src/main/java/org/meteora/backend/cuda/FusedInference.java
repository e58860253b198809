package org.meteora.backend.cuda;

import ai.djl.ndarray.NDArray;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.UUID;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.kernel.AdapterKernels;
import org.meteora.cuda.kernel.AdapterMemory;
import org.meteora.cuda.kernel.MatrixVector;
import org.meteora.moe.BankLayout;
import org.meteora.moe.GatedLinear;
import org.meteora.tensor.Ops;

/**
 * The adapters of gated linears with one input by CUDA kernels of our own, at inference, on
 * libtorch's stream: for few tokens one product with all gates and A and one launch that routes and
 * adds; for many, a launch that masks z = x Aᵀ between two of libtorch's products. Its device
 * memory goes with the manager of the adapters. Its scratch serves one pass at a time: what a pass
 * queues is queued under its lock, on one stream.
 */
final class FusedInference implements AutoCloseable {
  /** Up to this many tokens the matrix-vector kernels are used. */
  static final int MAX_VECTORS = MatrixVector.MAX_ROWS;

  private static final Stream LIBTORCH = Stream.of(0);

  private final List<BankLayout> layouts;
  private final NDArray stacked;
  private final long[] loraB;
  private final AdapterKernels kernels;
  private final Cuda cuda;
  private final String id = UUID.randomUUID().toString();
  private boolean closed;

  /**
   * @param linears one to three with gates and adapters, on a CUDA device
   * @param stacked their A and gates, as {@link BankLayout#stack} laid them
   * @throws org.meteora.UserException for what the kernels do not know
   */
  FusedInference(List<GatedLinear> linears, NDArray stacked, int topK) {
    this.layouts = linears.stream().map(GatedLinear::layout).toList();
    this.stacked = stacked;
    this.loraB = addressesOfB();
    cuda = Cuda.device(stacked.getDevice().getDeviceId());
    cuda.makeCurrent();
    var targets = new ArrayList<AdapterKernels.Target>();
    for (int i = 0; i < loraB.length; i++) {
      var bank = layouts.get(i).bank();
      var scales = new float[bank.size()];
      for (int j = 0; j < scales.length; j++) {
        scales[j] = (float) bank.scales()[j];
      }
      targets.add(
          new AdapterKernels.Target(
              new AdapterMemory(
                  Ops.dataPointer(bank.gate()),
                  Ops.dataPointer(bank.loraA()),
                  loraB[i],
                  bank.ranks(),
                  scales),
              (int) linears.get(i).weight().getShape().get(0)));
    }
    kernels =
        new AdapterKernels(
            cuda, Ops.dtype(stacked), topK, (int) stacked.getShape().get(1), targets, LIBTORCH);
    stacked.getManager().attachInternal(id, this);
  }

  private long[] addressesOfB() {
    return layouts.stream()
        .mapToLong(layout -> Ops.dataPointer(layout.loraBTransposed(false)))
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
   * @param choices as {@link AdapterKernels#addForDecode} takes them
   */
  synchronized void addFew(NDArray x, List<NDArray> y, double temperature, long[] choices) {
    cuda.makeCurrent();
    try (var rows = Ops.contiguous(x)) {
      kernels.addForDecode(
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
    kernels.scaleForPrefill(
        Ops.dataPointer(rows), x.getShape().get(0), choices, temperature, LIBTORCH);
    return rows;
  }

  /** A linear's masked z {@code (tokens, Σr)}. */
  NDArray z(NDArray masked, int linear) {
    int at = layouts.subList(0, linear).stream().mapToInt(each -> each.bank().totalRank()).sum();
    return Ops.narrow(masked, 1, at, layouts.get(linear).bank().totalRank());
  }

  /** A linear's logits {@code (tokens, N)}. */
  NDArray logits(NDArray masked, int linear) {
    int ranks = layouts.stream().mapToInt(each -> each.bank().totalRank()).sum();
    int before = layouts.subList(0, linear).stream().mapToInt(each -> each.bank().size()).sum();
    return Ops.narrow(masked, 1, ranks + before, layouts.get(linear).bank().size());
  }

  @Override
  public void close() {
    if (!closed) {
      closed = true;
      stacked.getManager().detachInternal(id);
      kernels.close();
    }
  }
}
