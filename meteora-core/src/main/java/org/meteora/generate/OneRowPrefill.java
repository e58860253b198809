package org.meteora.generate;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDArrays;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import org.meteora.model.BlockTables;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.model.Ranges;
import org.meteora.moe.ForwardContext;
import org.meteora.tensor.Ops;

/**
 * Runs prompts through a model one after another in one row: no more than the tokens of each that
 * are not known is computed, however different their lengths are. A pass ends where its budget
 * does, within a prompt too.
 */
final class OneRowPrefill implements Prefill {
  private final Llama model;
  private final List<int[]> prompts;
  private final int[] there; // how many tokens of each have been run, or were known
  private final Optional<KvCache> cache;
  private final Pass pass;
  private final NDManager manager;
  private final NDList last = new NDList(); // of prompts that have been run
  private int current; // the first prompt of which something is left

  private OneRowPrefill(
      Llama model, List<int[]> prompts, int[] known, Optional<KvCache> cache, Pass pass) {
    this.model = model;
    this.prompts = prompts;
    this.there = known.clone();
    this.cache = cache;
    this.pass = pass;
    this.manager = model.manager().newSubManager();
  }

  /**
   * The next tokens of a prompt.
   *
   * @param prompt its place in the list
   * @param first how many are before
   */
  record Piece(int prompt, int first, int count) {}

  private interface Pass {
    /**
     * @param ids of all pieces {@code (1, tokens)}
     * @return of each piece's last token what is wanted {@code (pieces, …)}
     */
    NDArray run(NDArray ids, List<Piece> pieces, ForwardContext context);
  }

  /**
   * Straight into the prompts' blocks: nothing is copied. What comes of a token does not depend on
   * where passes end, nor on whose tokens are beside it, but by products whose sums depend on the
   * number of rows.
   *
   * @param blocks of each prompt
   * @param known how many of each prompt's first tokens are in them
   * @param head as {@link #packed}
   */
  static OneRowPrefill intoBlocks(
      Llama model,
      KvCache pool,
      List<int[]> prompts,
      List<int[]> blocks,
      int[] known,
      boolean head) {
    return new OneRowPrefill(
        model,
        prompts,
        known,
        Optional.empty(),
        (ids, pieces, context) -> {
          var tables = new int[(int) ids.size()][];
          var lengths = new int[tables.length];
          int at = 0;
          var ends = new int[pieces.size()];
          for (int i = 0; i < ends.length; i++) {
            var piece = pieces.get(i);
            for (int place = piece.first(); place < piece.first() + piece.count(); place++) {
              tables[at] = blocks.get(piece.prompt());
              lengths[at++] = place;
            }
            ends[i] = at - 1;
          }
          return model.next(ids, pool, new BlockTables(tables, lengths), ends, head, context);
        });
  }

  /**
   * Into the only row of a cache of their own.
   *
   * @param known what is known of each prompt's beginning
   * @param head whether logits are wanted, as {@link Llama#next} says
   */
  static OneRowPrefill packed(
      Llama model, List<int[]> prompts, List<Optional<Known>> known, boolean head) {
    var first = new int[prompts.size()]; // column of each prompt
    int columns = 0;
    for (int i = 0; i < first.length; i++) {
      first[i] = columns;
      columns += prompts.get(i).length;
    }
    var cache = model.newCache(model.manager(), new int[1], columns);
    try {
      cache.pack(prompts.stream().mapToInt(prompt -> prompt.length).toArray());
      for (int i = 0; i < first.length; i++) {
        if (known.get(i).isPresent()) {
          var hit = known.get(i).get();
          hit.copyTo(model.backend().ops(), cache, 0, first[i], hit.tokens());
        }
      }
    } catch (RuntimeException | Error e) {
      cache.close();
      throw e;
    }
    return new OneRowPrefill(
        model,
        prompts,
        known.stream().mapToInt(its -> its.map(Known::tokens).orElse(0)).toArray(),
        Optional.of(cache),
        (ids, pieces, context) -> {
          var ranges =
              pieces.stream()
                  .map(each -> new Ranges.Piece(first[each.prompt()], each.first(), each.count()));
          return model.next(ids, cache, ranges.toList(), head, context);
        });
  }

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
    var ids = new long[pieces.stream().mapToInt(Piece::count).sum()];
    int at = 0;
    for (var piece : pieces) {
      for (int i = 0; i < piece.count(); i++) {
        ids[at++] = prompts.get(piece.prompt())[piece.first() + i];
      }
    }
    var its =
        ModelSession.run(manager, ids, 1, pieces.size(), input -> pass.run(input, pieces, context));
    int before = current;
    for (var piece : pieces) {
      there[piece.prompt()] += piece.count();
      if (there[piece.prompt()] == prompts.get(piece.prompt()).length) {
        current++;
      }
    }
    if (current > before) {
      last.add(Ops.narrow(its, 0, 0, current - before));
    } else {
      its.close();
    }
  }

  @Override
  public boolean isDone() {
    return current == prompts.size();
  }

  @Override
  public Optional<KvCache> cache() {
    return cache;
  }

  @Override
  public NDArray last() {
    return NDArrays.concat(last, 0);
  }

  @Override
  public void close() {
    manager.close();
    cache.ifPresent(KvCache::close);
  }
}
