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
  private RandomLlama() {}

  /**
   * @param adapters N; 0 for the base model alone
   * @param rank of each adapter
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

  /** Random weights. */
  public static LlamaFactory.Weights weights(NDManager manager, Dtype dtype) {
    return (name, shape) ->
        shape.length == 1
            ? norm(manager, dtype, shape)
            : normal(manager, dtype, 1 / Math.sqrt(shape[1]), shape);
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
    try (var scope = manager.newSubManager()) {
      var values = scope.randomNormal(0, (float) deviation, Ops.shape(shape), DataType.FLOAT32);
      var result = dtype == Dtype.F32 ? values : Ops.convert(values, dtype);
      result.attach(manager);
      return result;
    }
  }
}
