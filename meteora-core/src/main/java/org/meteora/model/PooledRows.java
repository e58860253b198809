package org.meteora.model;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.Arrays;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/** The rows of a step whose keys and values are in blocks of a pool. Not thread-safe. */
public final class PooledRows {
  /**
   * Rows of a pool as {@code (blocks · kvHeads · BLOCK, headDim)}.
   *
   * @param newest of the newest tokens, {@code (rows · kvHeads)} int64
   * @param all of all tokens, {@code (rows · kvHeads · columns)} int64; beyond a row's last token
   *     is its first: what is in a pool where no token is need not be finite
   * @param columns tokens of the row that has most
   * @param mask to add to scores, {@code (rows, 1, 1, columns)}
   */
  record Indices(NDArray newest, NDArray all, int columns, NDArray mask) {}

  private final NDManager manager;
  private final BlockTables tables;
  private final Dtype dtype;
  private Indices indices;

  /**
   * @param manager lives as long as the pass
   * @param dtype of scores
   */
  PooledRows(NDManager manager, BlockTables tables, Dtype dtype) {
    this.manager = manager;
    this.tables = tables;
    this.dtype = dtype;
  }

  /** Where they are. */
  public BlockTables tables() {
    return tables;
  }

  /** The same for tensor operations, made once a pass. */
  Indices indices(int kvHeads) {
    if (indices != null) {
      return indices;
    }
    var lengths = tables.lengths();
    int rows = lengths.length;
    int columns = Arrays.stream(lengths).max().orElse(0) + 1;
    var newest = new long[rows * kvHeads];
    var all = new long[rows * kvHeads * columns];
    var mask = new float[rows * columns];
    for (int row = 0; row < rows; row++) {
      for (int head = 0; head < kvHeads; head++) {
        int at = row * kvHeads + head;
        newest[at] = place(row, lengths[row], kvHeads, head);
        for (int t = 0; t < columns; t++) {
          all[at * columns + t] = place(row, t <= lengths[row] ? t : 0, kvHeads, head);
        }
      }
      Arrays.fill(mask, row * columns + lengths[row] + 1, (row + 1) * columns, KvCache.MASKED);
    }
    try (var full = Ops.of(manager, mask, rows, 1, 1, columns)) {
      indices =
          new Indices(
              Ops.of(manager, newest, newest.length),
              Ops.of(manager, all, all.length),
              columns,
              Ops.convert(full, dtype));
    }
    return indices;
  }

  private long place(int row, int token, int kvHeads, int head) {
    long block = tables.blocks()[row][token / KvCache.BLOCK];
    return (block * kvHeads + head) * KvCache.BLOCK + token % KvCache.BLOCK;
  }
}
