package org.meteora.model;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDArrays;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import java.util.Arrays;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * Rotary position embedding in Hugging Face's layout (the two halves of a head are the pair).
 * Cosines and sines are computed in double, kept as float32 tables for as many positions as were
 * asked for so far, and looked up by position; from any thread.
 */
public final class RotaryEmbedding {
  private final NDManager manager;
  private final double[] frequencies;
  private final int headDim;
  private final Dtype dtype;
  private volatile Tables tables;

  /** {@code (positions, headDim)} float32 each. Never closed before the model: others may read. */
  private record Tables(NDArray cos, NDArray sin, int positions) {}

  /**
   * Cosine and sine of every position of a pass, {@code (batch or 1, seq, 1, headDim)} in the
   * model's dtype; the sine's first half is negated, so that {@code x · cos + swapHalves(x) · sin}
   * rotates.
   */
  public record Angles(NDArray cos, NDArray sin) {}

  /**
   * @param manager owns the tables
   */
  public RotaryEmbedding(NDManager manager, Architecture config, Dtype dtype) {
    this.manager = manager;
    this.headDim = config.headDim();
    this.dtype = dtype;
    this.frequencies = frequencies(config);
  }

  /** Angle per position of each pair, {@code headDim / 2} of them. */
  public static double[] frequencies(Architecture config) {
    var rope = config.rope();
    int half = config.headDim() / 2;
    var result = new double[half];
    for (int i = 0; i < half; i++) {
      double frequency = Math.pow(rope.theta(), -2.0 * i / config.headDim());
      result[i] =
          switch (rope.type()) {
            case "linear" -> frequency / rope.factor();
            case "llama3" -> llama3(frequency, rope);
            default -> frequency;
          };
    }
    return result;
  }

  /**
   * Llama 3.1: long wavelengths are stretched by the factor, short ones kept, those between
   * interpolated.
   */
  private static double llama3(double frequency, Architecture.Rope rope) {
    double wavelength = 2 * Math.PI / frequency;
    double original = rope.originalMaxPositionEmbeddings();
    if (wavelength > original / rope.lowFreqFactor()) {
      return frequency / rope.factor();
    }
    if (wavelength < original / rope.highFreqFactor()) {
      return frequency;
    }
    double smooth =
        (original / wavelength - rope.lowFreqFactor())
            / (rope.highFreqFactor() - rope.lowFreqFactor());
    return (1 - smooth) * frequency / rope.factor() + smooth * frequency;
  }

  /**
   * Looks positions up.
   *
   * @param manager owns the result
   * @param position {@code (batch or 1) × seq} positions, row-major
   */
  public Angles angles(NDManager manager, long[] position, int rows) {
    long highest = Arrays.stream(position).max().orElse(0);
    var known = tables;
    if (known == null || known.positions() <= highest) {
      known = grow((int) highest + 1);
    }
    var ids = Ops.of(manager, position, rows, position.length / rows);
    return new Angles(look(known.cos(), ids), look(known.sin(), ids));
  }

  private NDArray look(NDArray table, NDArray ids) {
    return Ops.cast(Ops.embedding(table, ids), dtype).expandDims(2);
  }

  private synchronized Tables grow(int needed) {
    if (tables != null && needed <= tables.positions()) {
      return tables;
    }
    int count = Math.max(256, Integer.highestOneBit(needed - 1) << 1);
    var cosines = new float[count * headDim];
    var sines = new float[count * headDim];
    int half = headDim / 2;
    for (int p = 0; p < count; p++) {
      for (int i = 0; i < half; i++) {
        // Hugging Face multiplies in float32: large positions must round the same way
        float angle = (float) p * (float) frequencies[i];
        cosines[p * headDim + i] = cosines[p * headDim + half + i] = (float) Math.cos(angle);
        sines[p * headDim + half + i] = (float) Math.sin(angle);
        sines[p * headDim + i] = -sines[p * headDim + half + i];
      }
    }
    tables =
        new Tables(
            Ops.of(manager, cosines, count, headDim),
            Ops.of(manager, sines, count, headDim),
            count);
    return tables;
  }

  /** Rotates {@code x (batch, seq, heads, headDim)}. */
  public static NDArray rotate(NDArray x, Angles angles) {
    int half = (int) (x.getShape().get(3) / 2);
    var swapped =
        NDArrays.concat(new NDList(Ops.narrow(x, 3, half, half), Ops.narrow(x, 3, 0, half)), 3);
    return x.mul(angles.cos()).add(swapped.mul(angles.sin()));
  }
}
