package org.meteora.cuda.kernel;

import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.driver.Struct;
import org.meteora.tensor.Dtype;

/**
 * What a Llama does between its matrix products, for many tokens (prefill), on somebody else's
 * tensors and stream.
 */
public final class RowKernels {
  private final Kernels kernels;

  /** Kernels for f32, f16 or bf16. */
  public RowKernels(Cuda cuda, Dtype dtype) {
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
      var argument =
          new Struct()
              .add(h)
              .add(delta)
              .add(sum)
              .add(weight)
              .add(out)
              .add(rows)
              .add(hidden)
              .add(eps);
      kernels
          .get("prefill_rms_norm")
          .launch(Math.toIntExact(rows), 1, 1, 256, 0, false, argument)
          .on(stream);
    }
  }

  /** The shapes that {@link #rope} works on; {@code past}: positions in the cache before it. */
  public record Heads(
      int batch, int seq, int heads, int kvHeads, int headDim, int capacity, int past) {}

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
      var argument =
          new Struct()
              .add(q)
              .add(k)
              .add(v)
              .add(cosines)
              .add(sines)
              .add(keys)
              .add(values)
              .add(tokens)
              .add((long) shape.capacity())
              .add((long) shape.past())
              .add(shape.seq())
              .add(angleRows)
              .add(shape.heads())
              .add(shape.kvHeads())
              .add(shape.headDim())
              .add(vectors);
      kernels
          .get("prefill_rope_append")
          .launch(Math.toIntExact((threads + 255) / 256), 1, 1, 256, 0, false, argument)
          .on(stream);
    }
  }

  /**
   * {@code out = silu(gate) · up}, elementwise over {@code count} elements; out may be gate or up.
   */
  public void siluUp(long gate, long up, long out, long count, Stream stream) {
    if (count > 0) {
      var aligned = (gate | up | out) % 16 == 0;
      var argument = new Struct().add(gate).add(up).add(out).add(count).add(aligned).add(0);
      kernels
          .get("prefill_silu_up")
          .launch(Math.toIntExact((count + 2047) / 2048), 1, 1, 256, 0, false, argument)
          .on(stream);
    }
  }
}
