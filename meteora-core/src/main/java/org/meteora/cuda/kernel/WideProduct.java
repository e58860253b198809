package org.meteora.cuda.kernel;

import java.util.List;
import java.util.Optional;
import java.util.stream.IntStream;
import org.meteora.cuda.driver.CStruct.Count;
import org.meteora.cuda.driver.Kernel;
import org.meteora.cuda.driver.Shape;
import org.meteora.cuda.driver.TensorMap;
import org.meteora.tensor.Dtype;

/**
 * {@code y = x · [W0; W1; …]ᵀ} for up to {@link #MAX_ROWS} rows of x: several weight matrices that
 * share their input are read in one launch, at the speed of memory, and multiplied on tensor cores.
 * A matrix' outputs begin at whole eights ({@link #at}); what is between them is zero. Where there
 * are too few rows of weights for all multiprocessors, k is cut into {@link #slots} slices, each
 * with its own copy of y {@code (slots, rows, ld)}; the reader sums them.
 *
 * <p>For f16 and bf16, compute capability 9.0, k a multiple of 64 and 16-byte aligned pointers.
 */
public final class WideProduct {
  /** Rows of x at most. */
  public static final int MAX_ROWS = 64;

  private static final int MAX_SEGMENTS = 9; // weights, gates and A of q, k and v
  private static final int CHUNK = 64;
  private static final int GROUP = 8;
  private static final int LARGE = 8; // groups of a large copy
  private static final int GROUP_BYTES = GROUP * CHUNK * 2;
  private static final int SHARED = 196 << 10;
  private static final int MAX_SLICES = 8;
  private static final int AT_A_TIME = 32; // groups that a block multiplies together at most

  /** {@code rows × k} weights at {@code address}. */
  public record Matrix(long address, int rows) {
    private int groups() {
      return (rows + GROUP - 1) / GROUP;
    }
  }

  record ProductWide(
      long y,
      int rows,
      int k,
      int ld,
      int slices,
      int stages,
      int groups,
      int most,
      int segments,
      @Count(MAX_SEGMENTS) int[] end) {}

  record ProductWideMaps(
      ProductWide product,
      TensorMap x,
      @Count(MAX_SEGMENTS) List<TensorMap> large,
      @Count(MAX_SEGMENTS) List<TensorMap> small) {}

  private final Kernels kernels;
  private final List<Matrix> matrices;
  private final int k;
  private final int rows;
  private final int groups;
  private final int slices;
  private final int most;
  private final int stages;

  /** Such a product, where the kernels take it. */
  public static Optional<WideProduct> of(Kernels kernels, List<Matrix> matrices, int k, int rows) {
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
    this.groups = matrices.stream().mapToInt(Matrix::groups).sum();
    var chunks = k / CHUNK;
    this.slices =
        IntStream.rangeClosed(1, Math.min(MAX_SLICES, chunks))
            .boxed()
            .min((a, b) -> Double.compare(cost(a), cost(b)))
            .orElseThrow();
    this.most = Math.ceilDiv(ofBlock(this.slices), passes(this.slices));
    this.stages = Math.min(12, (SHARED - beyond()) / (inputBytes() + most * GROUP_BYTES));
  }

  /** 16 rows of x that the kernel multiplies, 2 or 4. */
  private int tiles() {
    return rows <= 32 ? 2 : 4;
  }

  private int inputBytes() {
    return tiles() * 16 * CHUNK * 2;
  }

  /** Bytes of shared memory beside the ring: barriers, and what whole tiles reach behind it. */
  private int beyond() {
    return 2048 + (Math.max(16, (most + 7) / 8 * 8) - most) * GROUP_BYTES;
  }

  private int members(int slices) {
    return Math.max(1, Math.min(kernels.cuda().multiprocessors() / slices, groups));
  }

  private int ofBlock(int slices) {
    return Math.ceilDiv(groups, members(slices));
  }

  private int passes(int slices) {
    return Math.ceilDiv(ofBlock(slices), AT_A_TIME);
  }

  /** In KiB of a block: weights from memory, x from L2 beside them, copies of y. */
  private double cost(int slices) {
    var chunks = Math.ceilDiv(k / CHUNK, slices);
    var input = 0.25 * passes(slices) * 2 * tiles();
    var outputs = 4.0 * 8 * ofBlock(slices) * rows / 1024;
    return chunks * (ofBlock(slices) + input) + (slices == 1 ? 1 : 2) * outputs;
  }

  /** Copies of y that must be summed. */
  public int slots() {
    return slices;
  }

  /** Where a matrix' outputs begin in a row of y. */
  public int at(int matrix) {
    return GROUP * matrices.subList(0, matrix).stream().mapToInt(Matrix::groups).sum();
  }

  /** Floats of a row of y. */
  public int columns() {
    return GROUP * groups;
  }

  /**
   * @param x (rows, k) in the kernels' dtype, 16-byte aligned
   * @param y float32 (slots, rows, ld), 16-byte aligned
   * @param ld a multiple of 4, {@link #columns} at least
   */
  public Kernel.Launch launch(long x, long y, int ld, boolean overlap) {
    var end = new int[matrices.size()];
    for (var i = 0; i < end.length; i++) {
      end[i] = at(i) / GROUP + matrices.get(i).groups();
    }
    var name = rows <= 32 ? KernelName.PRODUCT_WIDE32 : KernelName.PRODUCT_WIDE64;
    var shared = beyond() + stages * (inputBytes() + most * GROUP_BYTES);
    return kernels.launch(
        name,
        Shape.of(members(slices) * slices, 1, 1, 288).withShared(shared).withOverlap(overlap),
        new ProductWideMaps(
            new ProductWide(y, rows, k, ld, slices, stages, groups, most, matrices.size(), end),
            TensorMap.swizzled(x, rows, k, tiles() * 16),
            matrices.stream()
                .map(m -> TensorMap.swizzled(m.address(), m.rows(), k, LARGE * GROUP))
                .toList(),
            matrices.stream()
                .map(m -> TensorMap.swizzled(m.address(), m.rows(), k, GROUP))
                .toList()));
  }
}
