package org.meteora.cuda.kernel;

import java.util.List;
import java.util.function.BiFunction;
import java.util.stream.IntStream;
import org.meteora.cuda.driver.CStruct.Count;
import org.meteora.cuda.driver.Shape;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.kernel.AdapterKernels.ScaledLinear;
import org.meteora.cuda.kernel.AdapterKernels.Target;
import org.meteora.tensor.Dtype;

/**
 * The adapters of one to three gated linears with one input in a prefill with many adapters: behind
 * a product with the gates alone, {@code y = Σ weight · scale · (x Aᵀ) Bᵀ} of the top-k adapters of
 * each token (paper, section 3.1), and nothing is multiplied for the others. For 16 bits.
 *
 * <p>Tokens are sorted by their adapters into tiles of 16, and tensor cores multiply a tile by its
 * adapter's rows. What that costs does not depend on how many adapters there are, as long as tiles
 * are full. They are sorted chunk by chunk, a token k times, in the adapters' order, so that a
 * token's sum has one order as well.
 *
 * <p>Stateless: what a pass needs lies in the scratch that it brings.
 */
public final class GroupedPrefill {
  /** A linear's ranks at least, for each rank that a token chooses. */
  private static final int RANKS_A_CHOSEN_ONE = 36;

  /** Tokens times a linear's ranks at least: 72 adapters of rank 8, 2048 tokens. */
  private static final long RANKS_OF_TOKENS = 72 * 8 * 2048;

  /** Blocks of {@code group_z} that a multiprocessor holds, each of eight warps. */
  private static final int Z_BLOCKS = 5;

  /**
   * A linear's tokens by their adapters; mirrors the struct of this name in {@code grouped.cuh}.
   *
   * @param chosen int32 (topK, tokens), each below the number of adapters
   * @param offsets int32 (n + 1), rows of adapters
   * @param tile {@code (chunks, tiles)} of 40 bytes, is written
   */
  record TokenGroups(long chosen, long offsets, long tile) {}

  record GroupTokens(
      @Count(AdapterKernels.MAX_LINEARS) List<TokenGroups> linear,
      int tokens,
      int chunk,
      int tiles) {}

  /**
   * A product {@code z = factor · x · rowsᵀ}; mirrors the struct of this name in {@code
   * grouped.cuh}.
   *
   * @param x (tokens, k)
   * @param rows (Σr, k), A
   * @param factors float32 (topK, tokens), or 0
   * @param z zeros behind an adapter's rank in whole eights; {@link GroupedColumns}
   * @param k in whole 32
   */
  record GroupedZ(TokenGroups groups, long x, long rows, long factors, long z, int k) {}

  record GroupZ(
      @Count(AdapterKernels.MAX_LINEARS) List<GroupedZ> linear,
      GroupedColumns columns,
      int tokens,
      int chunk,
      int tiles,
      int chunks) {}

  /**
   * Where z lies: (chunks, tiles, zStride / 8, 16, 8), or with {@code byRow} (tokens, zStride) of
   * all adapters, one's z where its rows lie among all; mirrors the struct of this name in {@code
   * grouped.cuh}.
   */
  record GroupedColumns(int zStride, boolean byRow) {}

  /**
   * A product {@code y = z · rows}; mirrors the struct of this name in {@code grouped.cuh}.
   *
   * @param rows (Σr, out), Bᵀ
   * @param z see {@link GroupedColumns}
   * @param y (tokens, out)
   * @param out in whole 8
   */
  record GroupedRows(TokenGroups groups, long rows, long z, long y, int out) {}

  /**
   * Products, or sums of them; mirrors the struct of this name in {@code grouped.cuh}.
   *
   * @param together so many linears are summed, into the first one's y
   */
  record GroupAdd(
      @Count(AdapterKernels.MAX_LINEARS) List<GroupedRows> linear,
      GroupedColumns columns,
      int linears,
      int together,
      int chunk,
      int tiles) {}

  record GroupedRoute(ScaledLinear linear, long chosen, long factors) {}

  record PrefillRoute(
      long rows,
      long tokens,
      long stride,
      long x,
      int k,
      float invTemperature,
      @Count(AdapterKernels.MAX_LINEARS) List<GroupedRoute> linear) {}

  /**
   * A pass.
   *
   * @param logits (tokens, stride): those of each linear
   * @param x (tokens, in), contiguous, what they were made from
   * @param choices as for {@link AdapterKernels#routeAndAdd}
   * @param scratch {@link #scratchBytes}
   */
  public record Pass(
      long logits,
      int stride,
      long x,
      int tokens,
      long[] choices,
      double temperature,
      long scratch) {}

  private final Kernels kernels;
  private final List<Target> targets;
  private final List<long[]> arrays;
  private final int in;
  private final int topK;

  /** Elements of a token's z. */
  private final int ranks;

  /** Of all adapters of all linears. */
  private final int allRanks;

  private final boolean isAvailable;

  /**
   * @param arrays per linear, where offsets and scales of its adapters are
   */
  GroupedPrefill(Kernels kernels, List<Target> targets, List<long[]> arrays, int in) {
    this.kernels = kernels;
    this.targets = targets;
    this.arrays = arrays;
    this.in = in;
    this.topK = kernels.constants().topK();
    int maxRank = targets.stream().mapToInt(t -> t.adapters().maxRank()).max().orElseThrow();
    this.ranks = (maxRank + 7) / 8 * 8;
    this.allRanks = targets.stream().mapToInt(t -> t.adapters().sumOfRanks()).sum();
    this.isAvailable =
        kernels.constants().dtype() != Dtype.F32
            && kernels.cuda().capability() >= 80
            && in % 32 == 0
            && targets.stream().allMatch(GroupedPrefill::takes);
  }

  private static boolean takes(Target target) {
    var adapters = target.adapters();
    return adapters.gateRows() > 0
        && target.out() % 8 == 0
        && adapters.isAligned()
        // places in B are counted in 32 bits, in bytes
        && (long) adapters.sumOfRanks() * target.out() < 1L << 31;
  }

  /** Whether the kernels take these linears. */
  boolean isAvailable() {
    return isAvailable;
  }

  /**
   * Whether this is the way for so many tokens. What it costs goes with the ranks that a token
   * chooses, and there are more launches, for which few tokens wait; what {@link
   * AdapterKernels#scaleForPrefill}'s way costs goes with all ranks, times tokens. On an H100
   * (Llama-3-8B's linears, rank 8, top 2) this is quicker with 80 adapters and slower with 64, both
   * with 2048 tokens; slower with 128 and 512 or 1024 tokens; with 256 as quick with 512 and
   * quicker with 1024.
   */
  public boolean isQuicker(int tokens) {
    int chosen = topK * ranks;
    return isAvailable
        && allRanks >= targets.size() * RANKS_A_CHOSEN_ONE * chosen
        && (long) tokens * allRanks >= targets.size() * RANKS_OF_TOKENS;
  }

  private TokenTiles tiles(int tokens) {
    return TokenTiles.of(
        tokens, 1, topK, kernels.constants().maxAdapters(), kernels.cuda().sharedMemory());
  }

  /** Where one linear's things lie in a scratch, and where the next one's begin. */
  private record Scratch(TokenGroups groups, long factors, long z, long end) {}

  private Scratch scratch(long chosen, int tokens, int target) {
    long tiles = tiles(tokens).all();
    long factors = chosen + whole(4L * topK * tokens);
    long tile = factors + whole(4L * topK * tokens);
    long z = tile + whole(tiles * TokenTiles.TILE_BYTES);
    return new Scratch(
        new TokenGroups(chosen, arrays.get(target)[0], tile),
        factors,
        z,
        z + whole(2 * tiles * TokenTiles.TILE * ranks));
  }

  private static long whole(long bytes) {
    return (bytes + 255) / 256 * 256;
  }

  /** Bytes of a pass's scratch. */
  public long scratchBytes(int tokens) {
    return targets.size() * scratch(0, tokens, 0).end();
  }

  private <T> List<T> ofEach(Pass pass, BiFunction<Integer, Scratch, T> of) {
    long each = scratch(0, pass.tokens(), 0).end();
    return IntStream.range(0, targets.size())
        .mapToObj(i -> of.apply(i, scratch(pass.scratch() + i * each, pass.tokens(), i)))
        .toList();
  }

  /** Chooses, sorts the tokens by their choices, and leaves their z in the scratch. */
  public void group(Pass pass, Stream stream) {
    var linears =
        AdapterKernels.scaledLinears(targets, arrays, topK, pass.tokens(), pass.choices(), 0);
    kernels.run(
        KernelName.PREFILL_ROUTE,
        Shape.of((pass.tokens() + 7) / 8, targets.size(), 1, 256),
        new PrefillRoute(
            pass.logits(),
            pass.tokens(),
            pass.stride(),
            pass.x(),
            in,
            (float) (1 / pass.temperature()),
            ofEach(
                pass,
                (i, its) ->
                    new GroupedRoute(linears.get(i), its.groups().chosen(), its.factors()))),
        stream);
    sort(pass, stream);
    z(pass, stream);
  }

  /** Sorts the tokens by what they have chosen. */
  void sort(Pass pass, Stream stream) {
    var tiles = tiles(pass.tokens());
    kernels.run(
        KernelName.GROUP_TOKENS,
        tiles.sorting(targets.size()).withOverlap(true),
        new GroupTokens(
            ofEach(pass, (i, its) -> its.groups()), pass.tokens(), tiles.chunk(), tiles.ofChunk()),
        stream);
  }

  /**
   * Four warps a block instead of eight where blocks would wait for each other; of an adapter's
   * last tile half is empty, as a rule.
   */
  private int zThreads(TokenTiles tiles) {
    int full = topK * tiles.tokens() / TokenTiles.TILE;
    int last = tiles.chunks() * targets.getFirst().adapters().count() / 2;
    long blocks = (long) (full + last) * (ranks / 8) * targets.size();
    return blocks > Z_BLOCKS * kernels.cuda().multiprocessors() ? 128 : 256;
  }

  /** {@code z = factor · x · Aᵀ} of tokens that have been sorted. */
  void z(Pass pass, Stream stream) {
    var tiles = tiles(pass.tokens());
    kernels.run(
        KernelName.GROUP_Z,
        Shape.of(tiles.all(), ranks / 8, targets.size(), zThreads(tiles)).withOverlap(true),
        new GroupZ(
            ofEach(
                pass,
                (i, its) ->
                    new GroupedZ(
                        its.groups(),
                        pass.x(),
                        targets.get(i).adapters().a(),
                        its.factors(),
                        its.z(),
                        in)),
            new GroupedColumns(ranks, false),
            pass.tokens(),
            tiles.chunk(),
            tiles.ofChunk(),
            tiles.chunks()),
        stream);
  }

  /**
   * Behind {@link #group}: what the adapters of each linear add.
   *
   * @param y per linear, (tokens, out), contiguous; is written
   */
  public void add(Pass pass, long[] y, Stream stream) {
    var tiles = tiles(pass.tokens());
    var outs = targets.stream().mapToInt(Target::out);
    kernels.run(
        KernelName.GROUP_ADD,
        tiles.adding(kernels.cuda().multiprocessors(), 1, outs).withOverlap(true),
        new GroupAdd(
            ofEach(
                pass,
                (i, its) -> {
                  var target = targets.get(i);
                  return new GroupedRows(
                      its.groups(), target.adapters().b(), its.z(), y[i], target.out());
                }),
            new GroupedColumns(ranks, false),
            y.length,
            1,
            tiles.chunk(),
            tiles.ofChunk()),
        stream);
  }
}
