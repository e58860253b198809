package org.meteora.generate;

import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import org.meteora.model.BlockTables;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.moe.ForwardContext;

/**
 * Runs prompts through a model one after another in one row, straight into their blocks: no more
 * than the tokens of each that are not known is computed, and nothing is copied. A pass ends where
 * its budget does, within a prompt too. What comes of a token does not depend on where passes end,
 * nor on whose tokens are beside it, but by products whose sums depend on the number of rows.
 */
final class BlockPrefill implements Prefill {
  private final Llama model;
  private final KvCache pool;
  private final List<int[]> prompts;
  private final List<int[]> blocks;
  private final int[] there; // how many tokens of each have been run, or were known
  private int current; // the first prompt of which something is left
  private float[] logits;

  /**
   * @param blocks of each prompt
   * @param known how many of each prompt's first tokens are in them
   */
  BlockPrefill(Llama model, KvCache pool, List<int[]> prompts, List<int[]> blocks, int[] known) {
    this.model = model;
    this.pool = pool;
    this.prompts = prompts;
    this.blocks = blocks;
    this.there = known.clone();
  }

  /**
   * The next tokens of a prompt.
   *
   * @param prompt its place in the list
   * @param first how many are before
   */
  record Piece(int prompt, int first, int count) {}

  /** What comes next, so many tokens at most. */
  List<Piece> next(long most) {
    var pieces = new ArrayList<Piece>();
    long left = most;
    for (int i = current; i < there.length && left > 0; i++) {
      int count = (int) Math.min(left, prompts.get(i).length - there[i]);
      pieces.add(new Piece(i, there[i], count));
      left -= count;
    }
    return pieces;
  }

  /** Runs what {@link #next} gave. */
  void run(List<Piece> pieces, ForwardContext context) {
    int tokens = pieces.stream().mapToInt(Piece::count).sum();
    var ids = new long[tokens];
    var tables = new int[tokens][];
    var lengths = new int[tokens];
    var ends = new int[pieces.size()];
    int at = 0;
    for (int i = 0; i < ends.length; i++) {
      var piece = pieces.get(i);
      for (int place = piece.first(); place < piece.first() + piece.count(); place++) {
        ids[at] = prompts.get(piece.prompt())[place];
        tables[at] = blocks.get(piece.prompt());
        lengths[at++] = place;
      }
      ends[i] = at - 1;
    }
    var its =
        ModelSession.logits(model, pool, ids, new BlockTables(tables, lengths), ends, context);
    int vocab = its.length / ends.length;
    if (logits == null) {
      logits = new float[prompts.size() * vocab];
    }
    for (int i = 0; i < ends.length; i++) {
      var piece = pieces.get(i);
      there[piece.prompt()] += piece.count();
      if (there[piece.prompt()] == prompts.get(piece.prompt()).length) {
        System.arraycopy(its, i * vocab, logits, current * vocab, vocab);
        current++;
      }
    }
  }

  @Override
  public boolean isDone() {
    return current == prompts.size();
  }

  @Override
  public Optional<KvCache> cache() {
    return Optional.empty();
  }

  @Override
  public float[] logits() {
    return logits;
  }

  @Override
  public void close() {
    // the pool is another's
  }
}
