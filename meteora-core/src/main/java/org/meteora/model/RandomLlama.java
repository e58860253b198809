package org.meteora.model;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import java.util.Arrays;
import org.meteora.lora.AdapterBank;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * A Llama of random numbers, made on its device, to try a device with, and to test and measure:
 * never zeros, and gates that spread the tokens over all adapters.
 */
public final class RandomLlama {
  private static final long PIECE = 1L << 22;

  private RandomLlama() {}

  /**
   * @param adapters N; 0 for the base model alone
   * @param dropout on the adapters' input in training
   */
  public static Llama create(
      Architecture config,
      NDManager manager,
      Dtype dtype,
      int adapters,
      int rank,
      Backend backend,
      double dropout) {
    return create(
        config, manager, dtype, adapters, rank, backend, dropout, weights(manager, dtype));
  }

  /** Random weights; of one that processes share each makes its part alone. */
  public static LlamaFactory.Weights weights(NDManager manager, Dtype dtype) {
    return new LlamaFactory.Weights() {
      @Override
      public NDArray get(String name, long... shape) {
        return shape.length == 1
            ? norm(manager, dtype, shape)
            : normal(manager, dtype, 1 / Math.sqrt(shape[1]), shape);
      }

      @Override
      public void read(NDArray target, String name, long from, long... shape) {
        if (shape.length == 1) {
          try (var ones = norm(manager, dtype, target.getShape().size())) {
            Ops.copy(target, ones);
          }
        } else {
          fill(target, 1 / Math.sqrt(shape[1]));
        }
      }
    };
  }

  /** As above, with these weights for the base model. */
  public static Llama create(
      Architecture config,
      NDManager manager,
      Dtype dtype,
      int adapters,
      int rank,
      Backend backend,
      double dropout,
      LlamaFactory.Weights weights) {
    return LlamaFactory.build(
        config,
        manager,
        dtype,
        weights,
        (layer, module) ->
            adapters == 0
                ? null
                : backend.forInference(bank(config.shape(module), manager, dtype, adapters, rank)),
        backend,
        dropout);
  }

  /** A random bank of equal ranks for a projection {@code (out, in)}. */
  public static AdapterBank bank(
      long[] shape, NDManager manager, Dtype dtype, int adapters, int rank) {
    var ranks = new int[adapters];
    Arrays.fill(ranks, rank);
    var scales = new double[adapters];
    Arrays.fill(scales, 2);
    long total = (long) adapters * rank;
    return new AdapterBank(
        normal(manager, dtype, 1 / Math.sqrt(shape[1]), adapters, shape[1]),
        normal(manager, dtype, 1 / Math.sqrt(shape[1]), total, shape[1]),
        normal(manager, dtype, 0.1, shape[0], total),
        ranks,
        scales);
  }

  private static NDArray norm(NDManager manager, Dtype dtype, long... shape) {
    return Ops.zeros(manager, dtype, shape).add(1);
  }

  /** Normally distributed numbers with this deviation. */
  public static NDArray normal(NDManager manager, Dtype dtype, double deviation, long... shape) {
    var result = Ops.empty(manager, dtype, shape);
    try (var flat = result.reshape(-1)) {
      fill(flat, deviation);
    }
    return result;
  }

  /** A piece at a time: what is made on the way is to leave no holes in a device's memory. */
  private static void fill(NDArray flat, double deviation) {
    long size = flat.getShape().size();
    for (long at = 0; at < size; at += PIECE) {
      long count = Math.min(PIECE, size - at);
      try (var scope = flat.getManager().newSubManager()) {
        var piece = Ops.narrow(flat, 0, at, count);
        piece.attach(scope);
        Ops.copy(
            piece, scope.randomNormal(0, (float) deviation, Ops.shape(count), DataType.FLOAT32));
      }
    }
  }
}
