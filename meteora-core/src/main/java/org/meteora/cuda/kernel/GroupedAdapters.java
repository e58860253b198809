package org.meteora.cuda.kernel;

import java.util.List;
import org.meteora.cuda.driver.CStruct.Count;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Shape;
import org.meteora.cuda.driver.Stream;
import org.meteora.tensor.Dtype;

/**
 * Adapters of many tokens, of each token those alone that it chose: tokens are sorted by their
 * adapters into tiles of 16, and tensor cores multiply a tile by its adapter's rows. What that
 * costs does not depend on how many adapters there are, as long as tiles are full. In 16 bits, up
 * to three linears a launch.
 *
 * <p>Tokens are sorted chunk by chunk, k times over: list j of a chunk is by the adapters that its
 * tokens chose as j-th, so that a token is once in each list and sums have one order.
 */
final class GroupedAdapters {
  /** Tokens of a tile. */
  private static final int TILE = 16;

  /** Tokens of a chunk at most. */
  private static final int CHUNK = 2048;

  /**
   * A linear's tokens by their adapters; mirrors the struct of this name in {@code grouped.cuh}.
   *
   * @param chosen int32 (topK, tokens), each below the number of adapters
   * @param offsets int32 (n + 1), rows of adapters
   * @param order {@link #orderBytes}, is written
   * @param tile {@link #tileBytes}, is written
   */
  record TokenGroups(long chosen, long offsets, long order, long tile) {}

  /** Mirrors the struct of this name in {@code grouped.cuh}. */
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
   * @param factors float32 (topK, tokens)
   * @param z (topK, tokens, ranks), zeros behind an adapter's rank in whole eights
   * @param k in whole 32
   */
  record GroupedZ(TokenGroups groups, long x, long rows, long factors, long z, int k) {}

  /** Mirrors the struct of this name in {@code grouped.cuh}. */
  record GroupZ(
      @Count(AdapterKernels.MAX_LINEARS) List<GroupedZ> linear,
      int tokens,
      int tiles,
      int ranks,
      int lists) {}

  /**
   * A product {@code y = z · rows}; mirrors the struct of this name in {@code grouped.cuh}.
   *
   * @param rows (Σr, out), Bᵀ
   * @param z (topK, tokens, ranks)
   * @param y (tokens, out)
   * @param out in whole 8
   */
  record GroupedRows(TokenGroups groups, long rows, long z, long y, int out) {}

  /** Mirrors the struct of this name in {@code grouped.cuh}. */
  record GroupAdd(
      @Count(AdapterKernels.MAX_LINEARS) List<GroupedRows> linear,
      int tokens,
      int chunk,
      int tiles,
      int ranks,
      int ahead) {}

  /** What a tile takes of {@code group_add}'s shared memory. */
  private static final int TILE_BYTES = 8 + 2 * TILE;

  private final Kernels kernels;
  private final int tokens;
  private final int adapters;
  private final int chunk;
  private final int tiles;
  private final int ranks;

  /** Bytes of {@code group_add}'s shared memory at most, the same for all that share kernels. */
  private final int allowed;

  /**
   * @param kernels of the top k, for whose adapters a choice is an index
   * @param adapters that a linear has
   * @param maxRank the largest of them
   */
  GroupedAdapters(Kernels kernels, int tokens, int adapters, int maxRank) {
    this.kernels = kernels;
    this.tokens = tokens;
    this.adapters = adapters;
    int most = CHUNK;
    while (shared(most) > kernels.cuda().sharedMemory()) {
      most /= 2;
    }
    this.allowed = shared(most);
    this.chunk = Math.min(most, (tokens + 7) / 8 * 8);
    this.tiles = tiles(chunk);
    this.ranks = ranks(maxRank);
  }

  /** Whether there are such kernels for a dtype on a GPU. */
  static boolean isAvailable(Cuda cuda, Dtype dtype) {
    return dtype != Dtype.F32 && cuda.capability() >= 80;
  }

  private int tiles(int chunk) {
    return chunk / TILE + Math.min(adapters, chunk);
  }

  private int shared(int chunk) {
    int topK = kernels.constants().topK();
    return (topK == 1 ? 0 : chunk * 64) + topK * tiles(chunk) * TILE_BYTES;
  }

  /** Elements of a token's z. */
  static int ranks(int maxRank) {
    return (maxRank + 7) / 8 * 8;
  }

  private int chunks() {
    return (tokens + chunk - 1) / chunk;
  }

  private int lists() {
    return chunks() * kernels.constants().topK();
  }

  /** What {@link TokenGroups#order} takes. */
  long orderBytes() {
    return 4L * lists() * tiles * TILE;
  }

  /** What {@link TokenGroups#tile} takes. */
  long tileBytes() {
    return 8L * lists() * tiles;
  }

  /** What a z takes. */
  long zBytes() {
    return 2L * kernels.constants().topK() * tokens * ranks;
  }

  /** Sorts the tokens of linears. */
  void group(List<TokenGroups> linears, Stream stream) {
    kernels.run(
        KernelName.GROUP_TOKENS,
        Shape.of(kernels.constants().topK(), chunks(), linears.size(), 256).withOverlap(true),
        new GroupTokens(linears, tokens, chunk, tiles),
        stream);
  }

  /** {@code z = factor · x · rowsᵀ} of linears whose tokens have been sorted. */
  void z(List<GroupedZ> linears, Stream stream) {
    kernels.run(
        KernelName.GROUP_Z,
        Shape.of(tiles, ranks / 8, linears.size() * lists(), 256).withOverlap(true),
        new GroupZ(linears, tokens, tiles, ranks, lists()),
        stream);
  }

  /** {@code y = z · rows} of linears whose tokens have been sorted. */
  void add(List<GroupedRows> linears, Stream stream) {
    int shared = shared(chunk);
    int widest = linears.stream().mapToInt(GroupedRows::out).max().orElseThrow();
    // never less than another thread's launch is about to take
    kernels.get(KernelName.GROUP_ADD).allowShared(allowed);
    kernels.run(
        KernelName.GROUP_ADD,
        Shape.of((widest + 31) / 32, chunks(), linears.size(), 1024).withShared(shared),
        new GroupAdd(linears, tokens, chunk, tiles, ranks, kernels.cuda().multiprocessors()),
        stream);
  }
}
