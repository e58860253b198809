package org.meteora.generate;

import java.util.List;
import java.util.Optional;
import org.meteora.model.BlockTables;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.moe.ForwardContext;

/**
 * Runs prompts straight into their blocks: nothing is copied. What comes of a token does not depend
 * on where passes end, nor on whose tokens are beside it, but by products whose sums depend on the
 * number of rows.
 */
final class BlockPrefill extends OneRowPrefill {
  private final Llama model;
  private final KvCache pool;
  private final List<int[]> blocks;

  /**
   * @param blocks of each prompt
   * @param known how many of each prompt's first tokens are in them
   */
  BlockPrefill(Llama model, KvCache pool, List<int[]> prompts, List<int[]> blocks, int[] known) {
    super(prompts, known);
    this.model = model;
    this.pool = pool;
    this.blocks = blocks;
  }

  @Override
  float[] logits(long[] ids, List<Piece> pieces, ForwardContext context) {
    var tables = new int[ids.length][];
    var lengths = new int[ids.length];
    var ends = new int[pieces.size()];
    int at = 0;
    for (int i = 0; i < ends.length; i++) {
      var piece = pieces.get(i);
      for (int place = piece.first(); place < piece.first() + piece.count(); place++) {
        tables[at] = blocks.get(piece.prompt());
        lengths[at++] = place;
      }
      ends[i] = at - 1;
    }
    var where = new BlockTables(tables, lengths);
    return ModelSession.logits(
        model, ids, 1, ends.length, input -> model.next(input, pool, where, ends, context));
  }

  @Override
  public Optional<KvCache> cache() {
    return Optional.empty();
  }

  @Override
  public void close() {
    // the pool is another's
  }
}
