package org.meteora.cuda.kernel;

import org.meteora.cuda.driver.Kernel;
import org.meteora.cuda.driver.Shape;
import org.meteora.tensor.Dtype;

/** Attention of one new token of each row over its keys and values, split over the sequence. */
public final class DecodeAttentionKernel {
  /** Columns that one block takes without help from a second cluster of blocks. */
  private static final int LONG = 512;

  /**
   * Mirrors the struct of this name in {@code attention.cuh}.
   *
   * @param q float32 (rows, heads, headDim), rotated and scaled
   * @param kCache (blocks, kvHeads, KvBlock.TOKENS, headDim)
   * @param vCache as {@code kCache}
   * @param out (rows, heads, headDim)
   * @param partial {@link #partialFloats}, scratch
   * @param counters uint32 (rows, heads / group), zero between launches
   * @param tables int32 (blocks of a sequence, tableRows), a column a row
   * @param lengths int32 (rows), tokens before the newest; negative: no sequence
   * @param splits blocks that share a row and a group of heads, or that are in a cluster
   */
  public record DecodeAttention(
      long q,
      long kCache,
      long vCache,
      long out,
      long partial,
      long counters,
      long tables,
      long lengths,
      int heads,
      int kvHeads,
      int tableRows,
      int splits) {
    private DecodeAttention withSplits(int splits) {
      return new DecodeAttention(
          q, kCache, vCache, out, partial, counters, tables, lengths, heads, kvHeads, tableRows,
          splits);
    }
  }

  private DecodeAttentionKernel() {}

  /** Floats of scratch memory of a launch with {@code rows}. */
  public static long partialFloats(Kernels kernels, int rows, int heads) {
    var constants = kernels.constants();
    var padded = (constants.headDim() + 7) / 8 * 8;
    var pairs = (long) rows * heads / constants.group();
    return pairs * Math.max(maxSplits(kernels, pairs), 8) * constants.group() * (padded + 2);
  }

  /** Blocks at most that share a row and a group of heads, of so many pairs. */
  private static int maxSplits(Kernels kernels, long pairs) {
    var wanted = (2L * kernels.cuda().multiprocessors() + pairs - 1) / pairs;
    return (int) Math.clamp(wanted, 1, 32);
  }

  /**
   * The launch; {@code argument.splits} is chosen here.
   *
   * @param maxLength tokens of a sequence at most
   */
  public static Kernel.Launch launch(
      Kernels kernels, int rows, int maxLength, boolean overlap, DecodeAttention argument) {
    var cuda = kernels.cuda();
    var constants = kernels.constants();
    var groups = argument.heads() / constants.group();
    var pairs = groups * rows;
    var onTensorCores =
        constants.dtype() != Dtype.F32
            && cuda.capability() >= 90
            && (constants.headDim() == 64 || constants.headDim() == 128);
    var maxSplits = maxSplits(kernels, pairs);
    if (!onTensorCores) {
      return kernels.launch(
          KernelName.DECODE_ATTENTION,
          Shape.of(maxSplits, groups, rows, 128).withOverlap(overlap),
          argument.withSplits(maxSplits));
    }
    // a block that has more of a row, and joins nothing, is the quicker one where all have work
    var fewest = pairs >= cuda.multiprocessors() ? 1 : 2;
    var cluster = Integer.highestOneBit(Math.clamp(cuda.multiprocessors() / pairs, fewest, 8));
    var splits = cluster;
    if (cluster > 1 && maxLength > LONG * cluster && maxSplits >= 2 * cluster) {
      cluster = 2;
      splits = Integer.highestOneBit(maxSplits);
    }
    return kernels.launch(
        KernelName.DECODE_ATTENTION_CLUSTER,
        Shape.of(splits, groups, rows, 128).withOverlap(overlap).withCluster(cluster),
        argument.withSplits(cluster));
  }
}
