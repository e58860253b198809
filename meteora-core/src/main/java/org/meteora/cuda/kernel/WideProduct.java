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

/**
 * A {@link ManyRowsProduct} for up to {@link #MAX_ROWS} rows of x, at the speed of memory. What is
 * between the outputs of matrices is zero.
 */
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

  private final Kernels kernels;
  private final List<Matrix> matrices;
  private final int k;
  private final int rows;
  private final int slices;

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
    var most = Math.min(k / CHUNK, kernels.cuda().multiprocessors() / matrices.size());
    this.slices =
        IntStream.rangeClosed(1, Math.clamp(most, 1, MAX_SLICES))
            .boxed()
            .min(Comparator.comparingDouble(this::cost))
            .orElseThrow();
  }

  /** Rows of x that the kernel multiplies. */
  private int inputRows() {
    return rows <= 32 ? 32 : 64;
  }

  /** Groups of a block: so few that every multiprocessor has one block, where there are so few. */
  private int ofBlock(int slices) {
    var all = matrices.stream().mapToInt(Matrix::groups).max().orElseThrow();
    return IntStream.range(1, all)
        .map(WideProduct::inWholePasses)
        .filter(each -> blocks(each).sum() * slices <= kernels.cuda().multiprocessors())
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

  /** Of each matrix: none has groups of two, so that a block's come by one request. */
  private IntStream blocks(int ofBlock) {
    return matrices.stream().mapToInt(matrix -> Math.ceilDiv(matrix.groups(), ofBlock));
  }

  /** Groups of a pass. */
  private int most(int slices) {
    var ofBlock = ofBlock(slices);
    return ofBlock / passes(ofBlock);
  }

  /** Stages of so many chunks that fit. */
  private int stages(int slices, int chunks) {
    return Math.min(MAX_STAGES, (SHARED - beyond(slices)) / stageBytes(slices, chunks));
  }

  private int stageBytes(int slices, int chunks) {
    return chunks * (inputRows() * CHUNK * 2 + most(slices) * GROUP_BYTES);
  }

  /** Bytes of shared memory beside the ring: barriers, and what whole tiles reach behind it. */
  private int beyond(int slices) {
    var most = most(slices);
    return 2048 + (Math.max(16, Math.ceilDiv(most, 8) * 8) - most) * GROUP_BYTES;
  }

  /** Of a stage: two, for half as many requests, where there are enough stages even so. */
  private int chunks(int slices) {
    return k % (2 * CHUNK) == 0 && k / (2 * CHUNK) >= slices && stages(slices, 2) >= 3 ? 2 : 1;
  }

  /** In KiB of a block: weights from memory, x from L2 beside them, copies of y; a chunk's wait. */
  private double cost(int slices) {
    var ofBlock = ofBlock(slices);
    var chunks = chunks(slices);
    var multiplied = chunks * Math.ceilDiv(k / CHUNK / chunks, slices) + 1;
    var input = inputRows() / 32.0 * passes(ofBlock);
    var outputs = 4.0 * GROUP * ofBlock * rows / 1024;
    return multiplied * (ofBlock + input) + (slices == 1 ? 1 : 2) * outputs;
  }

  @Override
  public int slots() {
    return slices;
  }

  @Override
  public Kernel.Launch launch(long x, long y, int ld, boolean overlap) {
    var ofBlock = ofBlock(slices);
    var most = most(slices);
    var chunks = chunks(slices);
    var stages = stages(slices, chunks);
    var ofK = k / CHUNK / chunks;
    return kernels.launch(
        rows <= 32 ? KernelName.PRODUCT_WIDE32 : KernelName.PRODUCT_WIDE64,
        Shape.of(blocks(ofBlock).sum(), slices, 1, 288)
            .withShared(beyond(slices) + stages * stageBytes(slices, chunks))
            .withOverlap(overlap),
        new ProductWide(
            TensorMap.swizzled(x, rows, k, inputRows(), chunks),
            matrices.stream()
                .map(m -> TensorMap.swizzled(m.address(), m.rows(), k, most * GROUP, chunks))
                .toList(),
            y,
            rows,
            ld,
            stages,
            chunks,
            ofK / slices,
            ofK % slices,
            most,
            ofBlock / most,
            matrices.stream().mapToInt(Matrix::groups).toArray(),
            blocks(ofBlock).toArray()));
  }
}
