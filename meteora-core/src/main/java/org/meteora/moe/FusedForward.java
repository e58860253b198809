package org.meteora.moe;

import ai.djl.ndarray.NDArray;
import java.util.List;
import java.util.UUID;
import org.meteora.cuda.Cuda;
import org.meteora.cuda.DecodeModel;
import org.meteora.cuda.FusedMoe;
import org.meteora.cuda.Stream;
import org.meteora.lora.AdapterBank;
import org.meteora.torch.Ops;

/**
 * The adapters of one gated layer by CUDA kernels of our own, at inference, on libtorch's stream:
 * for few tokens one product with all gates and A and one launch that routes and adds; for many, a
 * launch that masks z = x Aᵀ between two of libtorch's products. Its device memory goes with the
 * manager of the adapters.
 */
final class FusedForward implements AutoCloseable {
  /** Up to this many tokens the kernels for few are used. */
  static final int FEW = 16;

  private static final Stream LIBTORCH = Stream.of(0);

  private final AdapterBank bank;
  private final BankLayout layout;
  private final long loraB;
  private final int topK;
  private final FusedMoe kernels;
  private final String id = UUID.randomUUID().toString();
  private boolean closed;

  /**
   * @param layout of a bank with a gate, on a CUDA device
   * @throws org.meteora.UserException for what the kernels do not know
   */
  FusedForward(BankLayout layout, NDArray weight, int topK) {
    this.layout = layout;
    this.bank = layout.bank();
    this.loraB = Ops.dataPointer(layout.loraBTransposed(false));
    this.topK = topK;
    var cuda = Cuda.device(weight.getDevice().getDeviceId());
    cuda.makeCurrent();
    var scales = new float[bank.size()];
    for (int i = 0; i < scales.length; i++) {
      scales[i] = (float) bank.scales()[i];
    }
    var adapters =
        new DecodeModel.Adapters(
            Ops.dataPointer(bank.gate()),
            Ops.dataPointer(bank.loraA()),
            loraB,
            bank.ranks(),
            scales);
    var shape = weight.getShape();
    kernels =
        new FusedMoe(
            cuda,
            Ops.dtype(weight),
            topK,
            (int) shape.get(1),
            List.of(new FusedMoe.Target(adapters, (int) shape.get(0))),
            LIBTORCH);
    bank.loraA().getManager().attachInternal(id, this);
  }

  /** Whether this is for k adapters a token and for B as it is now. */
  boolean fits(int k) {
    return topK == k && loraB == Ops.dataPointer(layout.loraBTransposed(false));
  }

  /**
   * Adds the adapters' part for few tokens.
   *
   * @param x {@code (tokens, in)}
   * @param y the base product, {@code (tokens, out)} in memory; changed
   * @param choice device address that receives int32 indices and float32 weights, each {@code
   *     (tokens, topK)}; or 0
   */
  void addFew(NDArray x, NDArray y, double temperature, long choice) {
    try (var rows = Ops.contiguous(x)) {
      int tokens = (int) x.getShape().get(0);
      kernels.addFew(
          Ops.dataPointer(rows),
          new long[] {Ops.dataPointer(y)},
          tokens,
          choice,
          weightsAt(choice, tokens),
          temperature,
          LIBTORCH);
    }
  }

  /**
   * Adds the adapters' part for any number of tokens.
   *
   * @param x {@code (tokens, in)}
   * @param logits {@code (tokens, N)}
   * @param y the base product, {@code (tokens, out)}; changed
   * @param choice as for few
   */
  void addMany(NDArray x, NDArray logits, NDArray y, double temperature, long choice) {
    try (var z = Ops.linear(x, bank.loraA(), null)) {
      kernels.maskMany(
          0,
          Ops.dataPointer(logits),
          bank.size(),
          Ops.dataPointer(z),
          bank.totalRank(),
          x.getShape().get(0),
          choice,
          weightsAt(choice, x.getShape().get(0)),
          temperature,
          LIBTORCH);
      Ops.addLinear(y, z, bank.loraB());
    }
  }

  private long weightsAt(long choice, long tokens) {
    return choice == 0 ? 0 : choice + 4 * tokens * topK;
  }

  @Override
  public void close() {
    if (!closed) {
      closed = true;
      bank.loraA().getManager().detachInternal(id);
      kernels.close();
    }
  }
}
