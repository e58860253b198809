package org.meteora.cuda.kernel;

import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.driver.Struct;
import org.meteora.tensor.Dtype;

/** Which adapters the gates choose, for many tokens (training), on somebody else's tensors. */
public final class GateChoice {
  private GateChoice() {}

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
    var argument = new Struct().add(logits).add(mask).add(tokens).add(adapters).add(0);
    kernels
        .get("training_top_k_mask")
        .launch(Math.toIntExact((tokens + 7) / 8), 1, 1, 256, 0, false, argument)
        .on(stream);
  }
}
