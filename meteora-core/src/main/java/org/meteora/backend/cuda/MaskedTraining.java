package org.meteora.backend.cuda;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDArrays;
import ai.djl.ndarray.NDList;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Shape;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.kernel.AdapterKernels;
import org.meteora.cuda.kernel.AdapterKernels.TrainingTopKMask;
import org.meteora.cuda.kernel.KernelName;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.cuda.kernel.Kernels.Constants;
import org.meteora.moe.BankLayout;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * The masked form of a gated layer in training on a GPU, recorded for the backward pass:
 *
 * <pre>
 * [z | l] = x [A; G]ᵀ      w = softmax(l + m), m = 0 for the chosen adapters, −∞ for the others
 * y = base + (z · (w E)) Bᵀ      E: scales of each adapter in its own columns
 * </pre>
 *
 * The softmax over the chosen logits alone is the top-k of the softmax over all, divided by its sum
 * (paper, section 3.1), values and gradients; so neither a gather nor a scatter is needed, and the
 * choice, which has no gradient, is one launch of a kernel. Gates share A's product, so that x is
 * read, and its gradient written, once for both, unless dropout gives A an input of its own.
 */
final class MaskedTraining {
  private MaskedTraining() {}

  /**
   * @param added {@code (tokens, out)}, to be added to the base product
   * @param logits {@code (tokens, N)}
   */
  record Result(NDArray added, NDArray logits) {}

  /**
   * @param x {@code (tokens, in)}
   * @param dropout on A's input; 0 for none
   */
  static Result forward(NDArray x, BankLayout layout, int topK, double dropout) {
    var bank = layout.bank();
    long tokens = x.getShape().get(0);
    int ranks = bank.totalRank();
    int adapters = bank.size();
    NDArray z;
    NDArray logits;
    if (dropout > 0) {
      z = Ops.linear(Ops.dropout(x, dropout), bank.loraA(), null);
      logits = Ops.narrow(product(x, new NDList(bank.gate())), 1, 0, adapters);
    } else {
      var both = product(x, new NDList(bank.loraA(), bank.gate()));
      z = Ops.narrow(both, 1, 0, ranks);
      logits = Ops.narrow(both, 1, ranks, adapters);
    }
    logits = Ops.contiguous(logits);
    var unchosen = Ops.empty(x.getManager(), Dtype.F32, tokens, adapters);
    var cuda = Cuda.device(x.getDevice().getDeviceId());
    cuda.makeCurrent();
    var kernels = Kernels.of(cuda, Constants.ofLayers(Ops.dtype(logits), topK, adapters));
    if (tokens > 0) {
      kernels.run(
          KernelName.TRAINING_TOP_K_MASK,
          Shape.of(Math.toIntExact((tokens + 7) / 8), 1, 1, 256),
          new TrainingTopKMask(
              Ops.dataPointer(logits), Ops.dataPointer(unchosen), tokens, adapters),
          Stream.LIBTORCH);
    }
    var weights = Ops.softmax(Ops.cast(logits, Dtype.F32).add(unchosen));
    var coefficients = Ops.cast(weights.matMul(layout.expansion()), Ops.dtype(x));
    return new Result(Ops.linear(z.mul(coefficients), bank.loraB(), null), logits);
  }

  /** {@code x} times the rows of all parts, and so many zeros that the result's rows are whole. */
  private static NDArray product(NDArray x, NDList parts) {
    int rows = parts.stream().mapToInt(part -> (int) part.getShape().get(0)).sum();
    int missing = AdapterKernels.columns(rows) - rows; // of whole 16 bytes: full speed
    if (missing > 0) {
      parts.add(Ops.zeros(x.getManager(), Ops.dtype(x), missing, x.getShape().get(1)));
    }
    var all = parts.size() == 1 ? parts.head() : NDArrays.concat(parts, 0);
    if (all != parts.head()) {
      all.attach(x.getManager());
    }
    return Ops.linear(x, all, null);
  }
}
