package org.meteora.cuda.kernel;

import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Shape;
import org.meteora.cuda.driver.Stream;
import org.meteora.tensor.Dtype;

/** Training's choice of adapters, as a mask for the gates' softmax, on somebody else's tensors. */
public final class TopKMask {
  /** Mirrors the struct of this name in {@code gated.cuh}. */
  record TrainingTopKMask(long logits, long mask, long tokens, int n) {}

  private TopKMask() {}

  /**
   * Writes 0 for the {@code topK} adapters of a token with the largest logits, −∞ for the others;
   * of equal logits the lower index counts as larger.
   *
   * @param logits (tokens, adapters) in {@code dtype}, contiguous
   * @param mask float32 (tokens, adapters), contiguous; written
   * @throws org.meteora.UserException for more adapters or a larger top-k than the kernel knows
   */
  public static void write(
      Cuda cuda,
      Dtype dtype,
      int topK,
      int adapters,
      long logits,
      long mask,
      long tokens,
      Stream stream) {
    cuda.makeCurrent();
    var kernels = Kernels.of(cuda, Kernels.Constants.ofLayers(dtype, topK, adapters));
    if (tokens == 0) {
      return;
    }
    kernels.run(
        KernelName.TRAINING_TOP_K_MASK,
        Shape.of(Math.toIntExact((tokens + 7) / 8), 1, 1, 256),
        new TrainingTopKMask(logits, mask, tokens, adapters),
        stream);
  }
}
