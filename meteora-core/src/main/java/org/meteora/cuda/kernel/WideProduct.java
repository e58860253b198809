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

  /** How many times less an early block has to multiply at least than others. */
  private static final double EARLY = 1.4;

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
      int early,
      int earlyMost,
      long earlyDone,
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

    /**
     * Groups of a block of a matrix whose blocks are to be done early: those that it has and the
     * multiprocessors that are left share it.
     *
     * @param groups of each matrix
     * @param early which
     * @return 0 where blocks have several passes or slices, or these would not be much earlier
     */
    int ofEarlyBlock(int multiprocessors, int[] groups, int early) {
      if (slices > 1 || ofBlock > most) {
        return 0;
      }
      var blocks = blocks(groups, ofBlock).toArray();
      var free = multiprocessors - IntStream.of(blocks).sum() + blocks[early];
      var each = Math.ceilDiv(groups[early], Math.max(1, free));
      return each * EARLY <= ofBlock ? each : 0;
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

  /**
   * How many blocks have done a matrix' part, well before the others have done theirs.
   *
   * @return 0 where they would not
   */
  public int earlyBlocks(int matrix) {
    var each = ofEarlyBlock(matrix);
    return each == 0 ? 0 : Math.ceilDiv(groups[matrix], each);
  }

  private int ofEarlyBlock(int matrix) {
    return deal.ofEarlyBlock(kernels.cuda().multiprocessors(), groups, matrix);
  }

  @Override
  public Kernel.Launch launch(long x, long y, int ld, boolean overlap) {
    return launch(x, y, ld, overlap, -1, 0);
  }

  /**
   * As {@link #launch(long, long, int, boolean)}; {@link #earlyBlocks} of a matrix count themselves
   * when y has their part.
   *
   * @param early the matrix, of which {@link #earlyBlocks} is not 0; or −1
   * @param earlyDone uint32, is raised by that
   */
  public Kernel.Launch launch(long x, long y, int ld, boolean overlap, int early, long earlyDone) {
    var ofK = k / CHUNK / deal.chunks;
    var blocks = Deal.blocks(groups, deal.ofBlock).toArray();
    var earlyMost = early < 0 ? 0 : ofEarlyBlock(early);
    if (early >= 0) {
      blocks[early] = earlyBlocks(early);
    }
    return kernels.launch(
        rows <= 32 ? KernelName.PRODUCT_WIDE32 : KernelName.PRODUCT_WIDE64,
        Shape.of(IntStream.of(blocks).sum(), deal.slices, 1, 288)
            .withShared(deal.sharedBytes(rows))
            .withOverlap(overlap),
        new ProductWide(
            TensorMap.swizzled(x, rows, k, inputRows(rows), deal.chunks),
            IntStream.range(0, matrices.size())
                .mapToObj(i -> weights(matrices.get(i), i == early ? earlyMost : deal.most))
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
            early,
            earlyMost,
            earlyDone,
            groups,
            blocks));
  }

  private TensorMap weights(Matrix matrix, int most) {
    return TensorMap.swizzled(matrix.address(), matrix.rows(), k, most * GROUP, deal.chunks);
  }
}
