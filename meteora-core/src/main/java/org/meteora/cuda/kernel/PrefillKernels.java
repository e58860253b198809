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
  /**
   * Mirrors the struct of this name in {@code prefill.cuh}.
   *
   * @param h (rows, hidden), contiguous
   * @param delta (rows, hidden), or 0 for none
   * @param sum (rows, hidden), which may be h or delta; unused without a delta
   * @param weight (hidden)
   * @param out (rows, hidden)
   */
  public record PrefillRmsNorm(
      long h, long delta, long sum, long weight, long out, long rows, int hidden, float eps) {}

  /**
   * Mirrors the struct of this name in {@code prefill.cuh}.
   *
   * @param q (batch, seq, heads, headDim), contiguous
   * @param k (batch, seq, kvHeads, headDim), contiguous; not changed
   * @param v as k
   * @param cosines (angleRows, seq, headDim)
   * @param sines as cosines, the first half of a head's negated
   * @param keys (batch, kvHeads, capacity, headDim)
   * @param values as keys
   * @param columns where in the cache its positions go, int64 (seq) on the device; or 0
   * @param tokens batch · seq
   * @param past positions in the cache before it, where its positions go without {@code columns}
   * @param angleRows batch or 1
   * @param vectors whether 16 elements may be read at once; they are not where they do not lie so
   */
  public record PrefillRopeAppend(
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
      boolean vectors) {
    public PrefillRopeAppend {
      vectors &= headDim % 16 == 0 && (q | k | v | cosines | sines) % 16 == 0;
    }
  }

  record PrefillSiluUp(long gate, long up, long out, long count, boolean vectors) {}

  /**
   * Mirrors the struct of this name in {@code prefill.cuh}.
   *
   * @param fromKeys a layer's keys there (rows, kvHeads, fromCapacity, headDim), values as well
   * @param toKeys the same here
   * @param entries int64 (count, 5): row and first column there, row and first column here, columns
   */
  public record PrefillCopyColumns(
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

  private void run(KernelName name, long blocks, Record argument, Stream stream) {
    if (blocks > 0) {
      kernels.run(name, Shape.of(Math.toIntExact(blocks), 1, 1, 256), argument, stream);
    }
  }

  /**
   * {@code out = rmsnorm(h) · weight}, with a delta {@code sum = h + delta; out = rmsnorm(sum) ·
   * weight}.
   */
  public void norm(PrefillRmsNorm argument, Stream stream) {
    run(KernelName.PREFILL_RMS_NORM, argument.rows(), argument, stream);
  }

  /** Rotates queries in place, and puts keys, rotated, and values into the cache. */
  public void rope(PrefillRopeAppend argument, Stream stream) {
    var heads = argument.heads() + 2 * argument.kvHeads();
    var threads = argument.tokens() * heads * (argument.headDim() / (argument.vectors() ? 16 : 2));
    run(KernelName.PREFILL_ROPE_APPEND, (threads + 255) / 256, argument, stream);
  }

  /**
   * {@code out = silu(gate) · up}, elementwise over {@code count} elements; out may be gate or up.
   */
  public void siluUp(long gate, long up, long out, long count, Stream stream) {
    var argument = new PrefillSiluUp(gate, up, out, count, (gate | up | out) % 16 == 0);
    run(KernelName.PREFILL_SILU_UP, (count + 2047) / 2048, argument, stream);
  }

  /**
   * Copies columns of rows of one cache to another's.
   *
   * @param count of the entries, not 0
   * @param longest the most columns of an entry, not 0
   */
  public void copyColumns(PrefillCopyColumns argument, int count, int longest, Stream stream) {
    var blocks = (longest * argument.headDim() + 2047) / 2048;
    kernels.run(
        KernelName.PREFILL_COPY_COLUMNS,
        Shape.of(blocks, 2 * argument.kvHeads(), count, 256),
        argument,
        stream);
  }
}
