package org.meteora.cuda.kernel;

import java.util.stream.IntStream;
import org.meteora.cuda.driver.Shape;

/**
 * How the kernels of {@code grouped.cuh} sort a pass's tokens by the adapters that they chose:
 * chunk by chunk, each token as often as it chose, into tiles of 16 of one adapter.
 *
 * @param tokens of the pass
 * @param chunk tokens of a chunk, in whole eights
 * @param topK adapters that a token chooses
 * @param adapters of a linear at most
 */
record TokenTiles(int tokens, int chunk, int topK, int adapters) {
  /** Tokens of a tile. */
  static final int TILE = 16;

  /** What a tile takes, in global memory and in {@code group_add}'s shared memory. */
  static final int TILE_BYTES = 8 + 2 * TILE;

  /** Tokens of a chunk at most. */
  private static final int CHUNK = 2048;

  /** Columns that a block of {@code group_add} sums at a time. */
  private static final int COLUMNS = 32;

  private static final int ADD_THREADS = 640;

  private static final int SORT_THREADS = 1024;

  /**
   * Chunks as long as shared memory allows.
   *
   * @param linears that {@code group_add} sums into one at most
   * @param sharedMemory bytes that a block may have
   */
  static TokenTiles of(int tokens, int linears, int topK, int adapters, int sharedMemory) {
    int longest = CHUNK;
    while (new TokenTiles(tokens, longest, topK, adapters).shared(linears) > sharedMemory) {
      longest /= 2;
    }
    return new TokenTiles(tokens, Math.min(longest, (tokens + 7) / 8 * 8), topK, adapters);
  }

  int chunks() {
    return Math.ceilDiv(tokens, chunk);
  }

  /** Tiles of a chunk: full ones, and one that is not for each adapter. */
  int ofChunk() {
    int assignments = topK * chunk;
    return assignments / TILE + Math.min(adapters, assignments);
  }

  /** Tiles of all chunks. */
  int all() {
    return chunks() * ofChunk();
  }

  /**
   * Bytes of the tiles of so many tokens at most, for each adapter that a token chooses, in chunks
   * of any length; in whole eights.
   */
  static long bytes(long tokens) {
    return (tokens + CHUNK) * (TILE + 1) / TILE * TILE_BYTES;
  }

  /** Bytes of {@code group_add}'s shared memory where so many linears are summed. */
  private int shared(int linears) {
    int sums = linears * topK == 1 ? 0 : 2 * COLUMNS * chunk;
    int barriers = 16;
    return sums + barriers + linears * (ofChunk() * TILE_BYTES + Integer.BYTES);
  }

  /** The launch of {@code group_tokens}. */
  Shape sorting(int linears) {
    int places = Kernels.MAX_ADAPTERS * topK;
    int sums = 8;
    return Shape.of(1, chunks(), linears, SORT_THREADS)
        .withShared(ofChunk() * TILE_BYTES + Integer.BYTES * (places + sums));
  }

  /**
   * The launch of {@code group_add}, whose blocks share all columns of a chunk: one a
   * multiprocessor.
   *
   * @param linears that are summed
   * @param outs columns of each sum
   */
  Shape adding(int multiprocessors, int linears, IntStream outs) {
    int parts = outs.map(out -> Math.ceilDiv(out, COLUMNS)).sum();
    int blocks = Math.clamp(multiprocessors / chunks(), 1, parts);
    return Shape.of(blocks, chunks(), 1, ADD_THREADS).withShared(shared(linears));
  }
}
