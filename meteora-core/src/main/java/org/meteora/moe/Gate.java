package org.meteora.moe;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * From the adapters' scores to their weights: MeteoRA's equations for inference and for training,
 * on tensors (recorded for backward) and on host memory. No other place chooses, but for the CUDA
 * kernels.
 */
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

  /**
   * All adapters, the heaviest first.
   *
   * @param weights {@code (tokens, N)} float32
   */
  public static Routing all(NDArray weights) {
    var sorted = Ops.topK(weights, (int) weights.getShape().get(1));
    return new Routing(sorted[1], sorted[0]);
  }

  /**
   * {@link #inference} in host memory; with T = 1 it is {@link #training} too, since a softmax over
   * the chosen logits alone is the softmax over all, divided by their sum.
   *
   * @param logits {@code (tokens, N)} float32, row-major
   * @param choice of tokens {@code from} to {@code to}, written here
   */
  public static void choose(
      MemorySegment logits, int n, Choice choice, int from, int to, double temperature) {
    int topK = choice.topK();
    var indices = choice.indices();
    var weights = choice.weights();
    var values = new float[n];
    for (int t = from; t < to; t++) {
      MemorySegment.copy(logits, JAVA_FLOAT, (long) t * n * Float.BYTES, values, 0, n);
      for (int j = 0; j < topK; j++) {
        int best = -1;
        for (int i = 0; i < n; i++) {
          if ((best < 0 || values[i] > values[best]) && !contains(indices, t * topK, j, i)) {
            best = i;
          }
        }
        indices[t * topK + j] = best;
      }
      double sum = 0;
      double top = values[indices[t * topK]];
      for (int j = 0; j < topK; j++) {
        double weight = Math.exp((values[indices[t * topK + j]] - top) / temperature);
        weights[t * topK + j] = (float) weight;
        sum += weight;
      }
      for (int j = 0; j < topK; j++) {
        weights[t * topK + j] /= (float) sum;
      }
    }
  }

  private static boolean contains(int[] values, int from, int count, int wanted) {
    for (int i = from; i < from + count; i++) {
      if (values[i] == wanted) {
        return true;
      }
    }
    return false;
  }

  /** A choice as tensors. */
  public static Routing upload(NDManager manager, Choice choice) {
    var indices = Arrays.stream(choice.indices()).asLongStream().toArray();
    return new Routing(
        Ops.of(manager, indices, choice.tokens(), choice.topK()),
        Ops.of(manager, choice.weights(), choice.tokens(), choice.topK()));
  }
}
