package org.meteora.moe;

import ai.djl.ndarray.NDArray;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/** From gate logits to a {@link Routing}: MeteoRA's equations for inference and for training. */
public final class Gate {
  private Gate() {}

  /**
   * Inference: {@code weight = softmax(top-k logits / T)} in float32; one adapter has the weight 1.
   *
   * @param logits {@code (tokens, N)}
   * @param temperature the routing temperature T, above 0
   */
  public static Routing inference(NDArray logits, int topK, double temperature) {
    var top = Ops.topK(Ops.cast(logits, Dtype.F32), topK);
    if (topK == 1) {
      return new Routing(top[1], top[0].onesLike());
    }
    var scaled = temperature == 1 ? top[0] : top[0].div(temperature);
    return new Routing(top[1], Ops.softmax(scaled));
  }

  /**
   * Training: {@code p = softmax(logits)} in float32, the top-k of p divided by their sum. The
   * routing temperature is not used.
   *
   * @param logits {@code (tokens, N)}
   */
  public static Routing training(NDArray logits, int topK) {
    var top = Ops.topK(Ops.softmax(logits), topK);
    return new Routing(top[1], top[0].div(top[0].sum(new int[] {-1}, true)));
  }
}
