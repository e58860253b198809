package org.meteora.cuda.kernel;

import java.util.ArrayList;
import java.util.List;
import org.meteora.cuda.driver.CStruct.Count;
import org.meteora.cuda.driver.Kernel;
import org.meteora.cuda.driver.Shape;
import org.meteora.cuda.driver.TensorMap;
import org.meteora.nn.Scores;
import org.meteora.tensor.Dtype;

/**
 * {@code y (rows, ld) = x (rows, k) · [W0; W1; …]ᵀ} for up to 16 rows: several weight matrices that
 * share their input are read in one launch, at the speed of memory. Sums are float32, and so is
 * {@code y}.
 *
 * <p>Two kernels do it: {@code product_stream} (f16 and bf16, compute capability 9.0 and newer, k a
 * multiple of 8, 16-byte aligned pointers), which adds to {@code y} and so needs it cleared, and
 * {@code product_any} for everything else. When the rows of x are long or do not fit a
 * multiprocessor's shared memory, k is cut into {@link #slots} slices, each with its own copy of y
 * {@code (slots, rows, ld)}; the reader sums them.
 */
public final class MatrixVector {
  /** Rows at most: a thread holds a sum for each in registers. Products of more are a library's. */
  public static final int MAX_ROWS = 16;

  private static final int MAX_SEGMENTS = 9; // weights, gates and A of q, k and v
  private static final int CHUNK = 1024;
  private static final int TILE = 16;

  /** Of x in a slice at most: a block fetches its slice before it multiplies anything. */
  private static final int CHUNKS = 4;

  /**
   * {@code rows × k} weights at {@code address}.
   *
   * @param first multiply them before the others and count what of them y has ({@link #gateTiles}):
   *     gates, behind which adapters can then be chosen; such segments follow each other
   */
  public record Segment(long address, int rows, boolean first) {
    public Segment(long address, int rows) {
      this(address, rows, false);
    }

    public int tiles() {
      return (rows + TILE - 1) / TILE;
    }
  }

  /**
   * How the streaming kernel uses a multiprocessor.
   *
   * @param sharedBytes shared memory of a block at most; what is left lets the next kernels' blocks
   *     start before it ends
   * @param inputBytes how much of it may hold x
   * @param overlap programmatic dependent launch
   * @param gatesFirst whoever waits for the gates can choose adapters before the product ends
   * @param maxStackedABytes stacked A matrices up to this size are multiplied whole with the base
   *     weights; of larger ones only the chosen adapters' rows are read, by a launch of its own
   */
  public record Tuning(
      int sharedBytes, int inputBytes, boolean overlap, boolean gatesFirst, long maxStackedABytes) {
    public static Tuning standard() {
      return new Tuning(196 << 10, 68 << 10, true, true, 16 << 20);
    }
  }

  record ProductSegment(long w, int end) {}

  record Product(
      long x,
      long y,
      long sumsq,
      int rows,
      int k,
      int total,
      int segments,
      int ld,
      int partials,
      float eps,
      int slices,
      int stages,
      boolean vectors,
      int tiles,
      int firstGateTile,
      int gateTiles,
      long gateTilesDone,
      @Count(MAX_SEGMENTS) List<ProductSegment> segment) {}

  record StreamedProduct(Product product, @Count(MAX_SEGMENTS) List<TensorMap> map) {}

  private final Kernels kernels;
  private final List<Segment> segments;
  private final int k;
  private final int rows;
  private final Tuning tuning;
  private final boolean stream;
  private final int slices;
  private final int stages;
  private final int shared;
  private final int total;
  private final int gateTiles;
  private List<TensorMap> maps;

  public MatrixVector(Kernels kernels, List<Segment> segments, int k, int rows, Tuning tuning) {
    if (segments.size() > MAX_SEGMENTS || rows < 1 || rows > MAX_ROWS) {
      throw new IllegalArgumentException(segments.size() + " matrices, " + rows + " rows");
    }
    this.kernels = kernels;
    this.segments = segments;
    this.k = k;
    this.rows = rows;
    this.tuning = tuning;
    this.total = segments.stream().mapToInt(Segment::rows).sum();
    var chunks = (k + CHUNK - 1) / CHUNK;
    var stageBytes = TILE * CHUNK * 2;
    var available = Math.min(tuning.sharedBytes(), kernels.cuda().sharedMemory());
    // more rows: fewer slices of x matter more than a longer ring, since every slice has its own y
    var minStages = rows > 8 ? 3 : 4;
    var forInput = Math.min(tuning.inputBytes(), available - minStages * stageBytes - 20000);
    var cut = (chunks + CHUNKS - 1) / CHUNKS;
    while (cut < chunks && inputBytes(chunks, cut) > forInput) {
      cut++;
    }
    var fixed = 512 + (rows > 8 ? 2 : 1) * 8192 + inputBytes(chunks, cut) + 128;
    this.slices = cut;
    this.stages = Math.min(12, (available - fixed) / stageBytes);
    this.shared = fixed + Math.max(stages, 0) * stageBytes;
    this.stream =
        kernels.constants().dtype() != Dtype.F32
            && kernels.cuda().capability() >= 90
            && k % 8 == 0
            && stages >= 2
            && kernels.cuda().multiprocessors() >= cut
            && segments.stream().allMatch(s -> s.address() % 16 == 0);
    var gates = segments.stream().filter(Segment::first).mapToInt(Segment::tiles).sum();
    var minChunks = chunks / slices;
    var maxChunks = (chunks + slices - 1) / slices;
    // beside its tiles of gates a block's share must have room for another: else a tile might be in
    // three blocks' shares, and its sum depend on their order
    var maxGateTiles = (gates + members() - 1) / members();
    var fits = (long) tiles() * minChunks / members() >= (maxGateTiles + 1L) * maxChunks;
    this.gateTiles = stream && tuning.gatesFirst() && fits ? gates : 0;
  }

  private int tiles() {
    return segments.stream().mapToInt(Segment::tiles).sum();
  }

  /** Blocks that share a slice. */
  private int members() {
    return Math.max(
        1, Math.min(kernels.cuda().multiprocessors() / slices, (total + TILE - 1) / TILE));
  }

  /** How many tiles of gates are counted until y has them all; 0: they do not come first. */
  public int gateTiles() {
    return gateTiles * slices;
  }

  /**
   * Whether it puts the spread of each row of x into the last two columns of y, which must be there
   * beside the product: where gates come first and {@link Scores#STANDARDIZED} asks for it.
   */
  public boolean leavesSpread() {
    return gateTiles > 0 && kernels.constants().scores() == Scores.STANDARDIZED;
  }

  private int inputBytes(int chunks, int slices) {
    return rows * ((chunks + slices - 1) / slices * CHUNK * 2 + 64);
  }

  /** Copies of y that must be summed. */
  public int slots() {
    return stream ? slices : 1;
  }

  /** Rows of the stacked weights. */
  public int total() {
    return total;
  }

  /**
   * @param x (rows, k) in the kernels' dtype, 16-byte aligned
   * @param y (slots, rows, ld) float32, cleared before
   * @param gateTilesDone uint32 that counts the tiles of gates, when they come first; or 0
   * @param sumsq float32 (rows, partials): x is an RMSNorm's input times its weight and these are
   *     its sums of squares; or 0
   */
  public Kernel.Launch launch(
      long x, long y, int ld, long gateTilesDone, long sumsq, int partials, float eps) {
    var vectors =
        k * kernels.constants().dtype().bytes() % 16 == 0
            && segments.stream().allMatch(s -> s.address() % 16 == 0);
    var list = new ArrayList<ProductSegment>();
    var end = 0;
    for (var segment : segments) {
      end += segment.rows();
      list.add(new ProductSegment(segment.address(), end));
    }
    var argument =
        new Product(
            x,
            y,
            sumsq,
            rows,
            k,
            total,
            segments.size(),
            ld,
            partials,
            eps,
            slices,
            stages,
            vectors,
            tiles(),
            segments.stream().takeWhile(s -> !s.first()).mapToInt(Segment::tiles).sum(),
            gateTiles,
            gateTiles == 0 ? 0 : gateTilesDone,
            list);
    if (!stream) {
      var grid = Math.min((total + 7) / 8, kernels.cuda().multiprocessors() * 8);
      return kernels.launch(
          KernelName.PRODUCT_ANY,
          Shape.of(grid, 1, 1, 256).withOverlap(tuning.overlap()),
          argument);
    }
    var name = rows > 8 ? KernelName.PRODUCT_STREAM16 : KernelName.PRODUCT_STREAM8;
    if (maps == null) {
      maps =
          segments.stream()
              .map(s -> TensorMap.encode(s.address(), s.rows(), k, TILE, CHUNK))
              .toList();
    }
    return kernels.launch(
        name,
        Shape.of(members() * slices, 1, 1, 288).withShared(shared).withOverlap(tuning.overlap()),
        new StreamedProduct(argument, maps));
  }
}
