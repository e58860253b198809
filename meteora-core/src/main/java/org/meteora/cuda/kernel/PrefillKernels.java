package org.meteora.cuda.kernel;

import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Shape;
import org.meteora.cuda.driver.Stream;
import org.meteora.tensor.Dtype;

/**
 * What a Llama does between its matrix products in a prefill, on somebody else's tensors and
 * stream.
 */
public final class PrefillKernels {
  /** Mirrors the struct of this name in {@code prefill.cuh}. */
  record PrefillRmsNorm(
      long h, long delta, long sum, long weight, long out, long rows, int hidden, float eps) {}

  /** Mirrors the struct of this name in {@code prefill.cuh}. */
  record PrefillRopeAppend(
      long q,
      long k,
      long v,
      long cosines,
      long sines,
      long keys,
      long values,
      long columns,
      long tokens,
      long capacity,
      long past,
      int seq,
      int angleRows,
      int heads,
      int kvHeads,
      int headDim,
      boolean vectors) {}

  /** Mirrors the struct of this name in {@code prefill.cuh}. */
  record PrefillSiluUp(long gate, long up, long out, long count, boolean vectors) {}

  /** Mirrors the struct of this name in {@code prefill.cuh}. */
  record PrefillCopyColumns(
      long fromKeys,
      long fromValues,
      long toKeys,
      long toValues,
      long entries,
      long fromCapacity,
      long toCapacity,
      int kvHeads,
      int headDim) {}

  private final Kernels kernels;

  /** Kernels for f32, f16 or bf16. */
  public PrefillKernels(Cuda cuda, Dtype dtype) {
    this.kernels = Kernels.of(cuda, Kernels.Constants.ofLayers(dtype, 1, 1));
  }

  /**
   * {@code out = rmsnorm(h) · weight}, with a delta {@code sum = h + delta; out = rmsnorm(sum) ·
   * weight}.
   *
   * @param h (rows, hidden), contiguous
   * @param delta (rows, hidden), or 0 for none
   * @param sum (rows, hidden), which may be h or delta; unused without a delta
   * @param weight (hidden)
   * @param out (rows, hidden)
   */
  public void norm(
      long h,
      long delta,
      long sum,
      long weight,
      long out,
      long rows,
      int hidden,
      float eps,
      Stream stream) {
    if (rows > 0) {
      kernels
          .launch(
              KernelName.PREFILL_RMS_NORM,
              Shape.of(Math.toIntExact(rows), 1, 1, 256),
              new PrefillRmsNorm(h, delta, sum, weight, out, rows, hidden, eps))
          .on(stream);
    }
  }

  /**
   * The shapes that {@link #rope} works on.
   *
   * @param past positions in the cache before it
   * @param columns where in the cache its positions go instead, int64 (seq) on the device; or 0
   */
  public record Heads(
      int batch,
      int seq,
      int heads,
      int kvHeads,
      int headDim,
      int capacity,
      int past,
      long columns) {}

  /**
   * Rotates queries in place, and puts keys, rotated, and values into the cache.
   *
   * @param q (batch, seq, heads, headDim), contiguous
   * @param k (batch, seq, kvHeads, headDim), contiguous; not changed
   * @param v as k
   * @param cosines (batch or 1, seq, headDim)
   * @param sines as cosines, the first half of a head's negated
   * @param angleRows batch or 1
   * @param keys (batch, kvHeads, capacity, headDim)
   * @param values as keys
   */
  public void rope(
      Heads shape,
      long q,
      long k,
      long v,
      long cosines,
      long sines,
      int angleRows,
      long keys,
      long values,
      Stream stream) {
    var vectors = shape.headDim() % 16 == 0 && (q | k | v | cosines | sines) % 16 == 0;
    var tokens = (long) shape.batch() * shape.seq();
    var threads =
        tokens * (shape.heads() + 2 * shape.kvHeads()) * (shape.headDim() / (vectors ? 16 : 2));
    if (threads > 0) {
      kernels
          .launch(
              KernelName.PREFILL_ROPE_APPEND,
              Shape.of(Math.toIntExact((threads + 255) / 256), 1, 1, 256),
              new PrefillRopeAppend(
                  q,
                  k,
                  v,
                  cosines,
                  sines,
                  keys,
                  values,
                  shape.columns(),
                  tokens,
                  shape.capacity(),
                  shape.past(),
                  shape.seq(),
                  angleRows,
                  shape.heads(),
                  shape.kvHeads(),
                  shape.headDim(),
                  vectors))
          .on(stream);
    }
  }

  /**
   * {@code out = silu(gate) · up}, elementwise over {@code count} elements; out may be gate or up.
   */
  public void siluUp(long gate, long up, long out, long count, Stream stream) {
    if (count > 0) {
      var aligned = (gate | up | out) % 16 == 0;
      kernels
          .launch(
              KernelName.PREFILL_SILU_UP,
              Shape.of(Math.toIntExact((count + 2047) / 2048), 1, 1, 256),
              new PrefillSiluUp(gate, up, out, count, aligned))
          .on(stream);
    }
  }

  /** A layer's keys and values {@code (rows, kvHeads, capacity, headDim)}. */
  public record Cache(long keys, long values, int capacity) {}

  /**
   * Copies columns of rows of one cache to another's.
   *
   * @param entries int64 (count, 5): row and first column there, row and first column here, columns
   * @param longest the most columns of an entry
   */
  public void copyColumns(
      Cache from,
      Cache to,
      long entries,
      int count,
      int longest,
      int kvHeads,
      int headDim,
      Stream stream) {
    if (count > 0 && longest > 0) {
      kernels
          .launch(
              KernelName.PREFILL_COPY_COLUMNS,
              Shape.of((longest * headDim + 2047) / 2048, 2 * kvHeads, count, 256),
              new PrefillCopyColumns(
                  from.keys(),
                  from.values(),
                  to.keys(),
                  to.values(),
                  entries,
                  from.capacity(),
                  to.capacity(),
                  kvHeads,
                  headDim))
          .on(stream);
    }
  }
}
