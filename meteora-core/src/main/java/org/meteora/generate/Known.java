package org.meteora.generate;

import java.util.ArrayList;
import java.util.List;
import org.meteora.model.KvCache;
import org.meteora.model.LayerOps;

/**
 * What a prompt begins with that is computed already.
 *
 * @param pool has its keys and values
 * @param blocks in order
 * @param tokens that are in them
 */
record Known(KvCache pool, int[] blocks, int tokens) {
  /** Copies the first {@code count} tokens' keys and values to a row, for a prefill to see. */
  void copyTo(LayerOps ops, KvCache to, int row, int column, int count) {
    var columns = new ArrayList<KvCache.Columns>();
    for (int at = 0; at < count; at += KvCache.BLOCK) {
      int its = Math.min(KvCache.BLOCK, count - at);
      columns.add(new KvCache.Columns(blocks[at / KvCache.BLOCK], 0, row, column + at, its));
    }
    ops.copyColumns(pool, to, columns);
  }

  /** Where tokens {@code first} and later of a span go in these blocks. */
  static List<KvCache.Columns> columns(KvCache.Span from, int first, int[] blocks) {
    var columns = new ArrayList<KvCache.Columns>();
    for (int at = first; at < from.count(); at += KvCache.BLOCK) {
      int its = Math.min(KvCache.BLOCK, from.count() - at);
      columns.add(
          new KvCache.Columns(from.row(), from.from() + at, blocks[at / KvCache.BLOCK], 0, its));
    }
    return columns;
  }
}
