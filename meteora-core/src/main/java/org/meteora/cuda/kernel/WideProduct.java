package org.meteora.cuda.kernel;

import java.util.Comparator;
import java.util.List;
import java.util.Optional;
import java.util.stream.IntStream;
import org.meteora.cuda.driver.CStruct.Count;
import org.meteora.cuda.driver.Kernel;
import org.meteora.cuda.driver.Shape;
import org.meteora.cuda.driver.TensorMap;
import org.meteora.tensor.Dtype;

/** A {@link ManyRowsProduct} for up to {@link #MAX_ROWS} rows of x, at the speed of memory. */
public final class WideProduct implements ManyRowsProduct {
  /** Rows of x at most. */
  public static final int MAX_ROWS = 64;

  private static final int MAX_SEGMENTS = 9; // weights, gates and A of q, k and v
  private static final int CHUNK = 64;
  private static final int GROUP_BYTES = GROUP * CHUNK * 2;
  private static final int SHARED = 196 << 10;
  private static final int MAX_STAGES = 12;
  private static final int MAX_SLICES = 8;
  private static final int AT_A_TIME = 32; // groups that a block multiplies together at most

  /** Mirrors the struct of this name in {@code product_wide.cuh}. */
  record ProductWide(
      TensorMap x,
      @Count(MAX_SEGMENTS) List<TensorMap> w,
      long y,
      int rows,
      int ld,
      int stages,
      int chunks,
      int each,
      int more,
      int most,
      int passes,
      @Count(MAX_SEGMENTS) int[] groups,
      @Count(MAX_SEGMENTS) int[] blocks) {}

  /**
   * How a product is dealt out.
   *
   * @param ofBlock groups of a block, of one matrix
   * @param most of these at a time
   * @param chunks of 64 of k of a stage: two, for half as many requests, where there are enough
   *     stages even so
   * @param stages of the ring
   * @param cost in KiB of a block: weights from memory, x from L2 beside them, copies of y; a
   *     chunk's wait
   */
  record Deal(int slices, int ofBlock, int most, int chunks, int stages, double cost) {
    /** The cheapest. */
    static Deal of(int multiprocessors, int[] groups, int k, int rows) {
      var most = Math.min(k / CHUNK, multiprocessors / groups.length);
      return IntStream.rangeClosed(1, Math.clamp(most, 1, MAX_SLICES))
          .mapToObj(slices -> of(multiprocessors, groups, k, rows, slices))
          .min(Comparator.comparingDouble(Deal::cost))
          .orElseThrow();
    }

    private static Deal of(int multiprocessors, int[] groups, int k, int rows, int slices) {
      var ofBlock = ofBlock(multiprocessors / slices, groups);
      var passes = passes(ofBlock);
      var most = ofBlock / passes;
      var stages = stages(most, rows, 2);
      var two = k % (2 * CHUNK) == 0 && k / (2 * CHUNK) >= slices && stages >= 3;
      var chunks = two ? 2 : 1;
      var multiplied = chunks * Math.ceilDiv(k / CHUNK / chunks, slices) + 1;
      var input = inputRows(rows) / 32.0 * passes;
      var outputs = 4.0 * GROUP * ofBlock * rows / 1024;
      return new Deal(
          slices,
          ofBlock,
          most,
          chunks,
          two ? stages : stages(most, rows, 1),
          multiplied * (ofBlock + input) + (slices == 1 ? 1 : 2) * outputs);
    }

    /** So few groups that a slice has no more blocks than multiprocessors, where it can. */
    private static int ofBlock(int multiprocessors, int[] groups) {
      var all = IntStream.of(groups).max().orElseThrow();
      return IntStream.range(IntStream.of(groups).sum() / multiprocessors, all)
          .filter(each -> each > 0)
          .map(Deal::inWholePasses)
          .filter(each -> blocks(groups, each).sum() <= multiprocessors)
          .findFirst()
          .orElse(inWholePasses(all));
    }

    private static int inWholePasses(int groups) {
      var passes = passes(groups);
      return Math.ceilDiv(groups, passes) * passes;
    }

    private static int passes(int ofBlock) {
      return Math.ceilDiv(ofBlock, AT_A_TIME);
    }

    private static int stages(int most, int rows, int chunks) {
      return Math.min(MAX_STAGES, (SHARED - beyond(most)) / stageBytes(most, rows, chunks));
    }

    private static int stageBytes(int most, int rows, int chunks) {
      return chunks * (inputRows(rows) * CHUNK * 2 + most * GROUP_BYTES);
    }

    /** Bytes of shared memory beside the ring: barriers, and what whole tiles reach behind it. */
    private static int beyond(int most) {
      return 2048 + (Math.max(16, Math.ceilDiv(most, 8) * 8) - most) * GROUP_BYTES;
    }

    int sharedBytes(int rows) {
      return beyond(most) + stages * stageBytes(most, rows, chunks);
    }

    /** Of each matrix. */
    private static IntStream blocks(int[] groups, int ofBlock) {
      return IntStream.of(groups).map(each -> Math.ceilDiv(each, ofBlock));
    }
  }

  private final Kernels kernels;
  private final List<Matrix> matrices;
  private final int k;
  private final int rows;
  private final int[] groups;
  private final Deal deal;

  /** Such a product, where the kernels take it. */
  static Optional<WideProduct> of(Kernels kernels, List<Matrix> matrices, int k, int rows) {
    var takes =
        kernels.constants().dtype() != Dtype.F32
            && kernels.cuda().capability() == 90
            && rows <= MAX_ROWS
            && k % CHUNK == 0
            && matrices.size() <= MAX_SEGMENTS
            && matrices.stream().allMatch(m -> m.address() % 16 == 0);
    return takes ? Optional.of(new WideProduct(kernels, matrices, k, rows)) : Optional.empty();
  }

  private WideProduct(Kernels kernels, List<Matrix> matrices, int k, int rows) {
    this.kernels = kernels;
    this.matrices = matrices;
    this.k = k;
    this.rows = rows;
    this.groups = matrices.stream().mapToInt(Matrix::groups).toArray();
    this.deal = Deal.of(kernels.cuda().multiprocessors(), groups, k, rows);
  }

  /** Rows of x that the kernel multiplies. */
  private static int inputRows(int rows) {
    return rows <= 32 ? 32 : 64;
  }

  @Override
  public int slots() {
    return deal.slices;
  }

  @Override
  public Kernel.Launch launch(long x, long y, int ld, boolean overlap) {
    var ofK = k / CHUNK / deal.chunks;
    var blocks = Deal.blocks(groups, deal.ofBlock).toArray();
    return kernels.launch(
        rows <= 32 ? KernelName.PRODUCT_WIDE32 : KernelName.PRODUCT_WIDE64,
        Shape.of(IntStream.of(blocks).sum(), deal.slices, 1, 288)
            .withShared(deal.sharedBytes(rows))
            .withOverlap(overlap),
        new ProductWide(
            TensorMap.swizzled(x, rows, k, inputRows(rows), deal.chunks),
            matrices.stream()
                .map(
                    m ->
                        TensorMap.swizzled(
                            m.address(), m.rows(), k, deal.most * GROUP, deal.chunks))
                .toList(),
            y,
            rows,
            ld,
            deal.stages,
            deal.chunks,
            ofK / deal.slices,
            ofK % deal.slices,
            deal.most,
            deal.ofBlock / deal.most,
            groups,
            blocks));
  }
}
