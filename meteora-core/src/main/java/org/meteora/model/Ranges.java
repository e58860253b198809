package org.meteora.model;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.List;
import org.meteora.tensor.Ops;

/**
 * Pieces of several sequences, one after another in the only row of a pass, whose keys and values
 * lie one after another in the only row of its cache.
 *
 * @param columns where the pass's tokens go in the cache, {@code (tokens)} int64
 * @param queries where each piece begins among the pass's tokens, and where the last one ends,
 *     {@code (pieces + 1)} int32
 * @param keys where the keys that each piece sees begin, behind {@code first}, and where the last
 *     one's end, as {@code queries}
 * @param maxQueries tokens of the longest piece
 * @param maxKeys the most keys that a piece sees
 * @param first column of the first piece's first key
 * @param count columns of all keys
 */
public record Ranges(
    NDArray columns,
    NDArray queries,
    NDArray keys,
    int maxQueries,
    int maxKeys,
    int first,
    int count) {

  /**
   * The next tokens of a sequence.
   *
   * @param first the sequence's first column in the cache
   * @param known how many of its tokens are there already
   * @param count how many follow
   */
  public record Piece(int first, int known, int count) {}

  /**
   * @param manager owns the arrays
   * @throws IllegalArgumentException where between two pieces' keys is a gap
   */
  static Ranges of(NDManager manager, List<Piece> pieces) {
    var queries = new int[pieces.size() + 1];
    var keys = new int[pieces.size() + 1];
    var columns = new long[pieces.stream().mapToInt(Piece::count).sum()];
    int start = pieces.getFirst().first();
    int maxQueries = 0;
    int maxKeys = 0;
    for (int i = 0; i < pieces.size(); i++) {
      var piece = pieces.get(i);
      if (piece.first() != start + keys[i]) {
        throw new IllegalArgumentException("pieces with a gap: " + pieces);
      }
      for (int j = 0; j < piece.count(); j++) {
        columns[queries[i] + j] = piece.first() + piece.known() + j;
      }
      queries[i + 1] = queries[i] + piece.count();
      int all = piece.known() + piece.count();
      keys[i + 1] = piece.first() + all - start;
      maxQueries = Math.max(maxQueries, piece.count());
      maxKeys = Math.max(maxKeys, all);
    }
    return new Ranges(
        Ops.of(manager, columns, columns.length),
        Ops.of(manager, queries, queries.length),
        Ops.of(manager, keys, keys.length),
        maxQueries,
        maxKeys,
        start,
        keys[pieces.size()]);
  }
}
