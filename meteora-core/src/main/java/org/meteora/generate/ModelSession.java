package org.meteora.generate;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.UnaryOperator;
import java.util.stream.IntStream;
import org.meteora.TooLittleMemory;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.model.Ranges;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.Router;
import org.meteora.moe.RoutingListener;
import org.meteora.tensor.Ops;

/**
 * Decode steps as passes of the model itself, on any device. All sequences end at one column of the
 * cache, where the next step goes; what is before a sequence's first column is its padding.
 */
public final class ModelSession implements DecodeSession {
  private static final int GONE = -1;

  private final Llama model;
  private final NDManager manager;
  private final ForwardContext context;
  private KvCache cache;
  private int[] slotOfRow = {};

  /** See {@link DecodeSession.Provider#begin}. */
  public ModelSession(Llama model, ForwardContext context) {
    this.model = model;
    this.context = context;
    this.manager = model.manager().newSubManager();
  }

  /** Sessions of this kind for a model. */
  public static DecodeSession.Provider of(Llama model) {
    return new DecodeSession.Provider() {
      @Override
      public DecodeSession begin(int sequences, int tokens, ForwardContext context) {
        return new ModelSession(model, context);
      }

      @Override
      public void close() {
        // nothing is kept
      }
    };
  }

  @Override
  public int sequences() {
    return Integer.MAX_VALUE;
  }

  @Override
  public long kvCapacity() {
    return Long.MAX_VALUE;
  }

  @Override
  public void join(KvCache filled, int[] slots) {
    int live = (int) Arrays.stream(slotOfRow).filter(slot -> slot != GONE).count();
    if (live == 0 && !filled.isPacked()) {
      replace(filled, slots.clone());
      return;
    }
    try (filled) {
      var spans = filled.spans();
      int longest = spans.stream().mapToInt(KvCache.Span::count).max().orElseThrow();
      int length = live == 0 ? longest : Math.max(cache.length(), longest);
      if (live == 0 || live + slots.length != slotOfRow.length || length > cache.length()) {
        rearrange(live + slots.length, length);
      }
      var padding = cache.padding();
      var columns = new ArrayList<KvCache.Columns>();
      int row = 0;
      for (int i = 0; i < slots.length; i++) {
        while (slotOfRow[row] != GONE) {
          row++;
        }
        slotOfRow[row] = slots[i];
        var its = spans.get(i);
        padding[row] = cache.length() - its.count();
        columns.add(new KvCache.Columns(its.row(), its.from(), row, padding[row], its.count()));
      }
      model.backend().ops().copyColumns(filled, cache, columns);
      cache.setPadding(padding, cache.length());
    }
  }

  private void replace(KvCache by, int[] slots) {
    if (cache != null) {
      cache.close();
    }
    cache = by;
    slotOfRow = slots;
  }

  /** Makes the cache one of so many rows and columns; those that are there come first. */
  private void rearrange(int rows, int length) {
    var there =
        IntStream.range(0, slotOfRow.length).filter(row -> slotOfRow[row] != GONE).toArray();
    var slots = new int[rows];
    Arrays.fill(slots, GONE);
    var padding = new int[rows];
    Arrays.fill(padding, length);
    var columns = new ArrayList<KvCache.Columns>();
    for (int row = 0; row < there.length; row++) {
      int from = cache.padding()[there[row]];
      int count = cache.length() - from;
      slots[row] = slotOfRow[there[row]];
      padding[row] = length - count;
      columns.add(new KvCache.Columns(there[row], from, row, padding[row], count));
    }
    var other = model.newCache(manager, padding, length + 1);
    if (!columns.isEmpty()) { // else there may be no cache yet
      model.backend().ops().copyColumns(cache, other, columns);
    }
    other.setPadding(padding, length);
    replace(other, slots);
  }

  @Override
  public int[] step(List<Next> rows) {
    int unused = Arrays.stream(cache.padding()).min().orElse(0);
    if (rows.size() < slotOfRow.length) {
      rearrange(rows.size(), cache.length() - commonPadding());
    } else if (cache.length() == cache.capacity() && unused >= KvCache.BLOCK) {
      rearrange(rows.size(), cache.length() - unused);
    }
    var ids = new long[rows.size()];
    var rowOf = new int[rows.size()];
    for (int i = 0; i < rowOf.length; i++) {
      rowOf[i] = rowOf(rows.get(i).slot());
      ids[rowOf[i]] = rows.get(i).token();
    }
    var logits = logits(model, cache, ids, 1, context(rows, rowOf));
    int vocab = logits.length / rows.size();
    var tokens = new int[rows.size()];
    for (int i = 0; i < tokens.length; i++) {
      var next = rows.get(i);
      tokens[i] =
          new Sampler(next.config(), 0)
              .chooseFinite(logits, rowOf[i] * vocab, vocab, next.banned(), next.uniform());
    }
    return tokens;
  }

  /** Each sequence's own router, if they have some, and a listener that hears them in order. */
  private ForwardContext context(List<Next> rows, int[] rowOf) {
    var its = context;
    if (rows.getFirst().router().isPresent()) {
      var routers = new Router.Rows.Row[rowOf.length];
      for (int i = 0; i < rowOf.length; i++) {
        routers[rowOf[i]] = rows.get(i).router().orElseThrow();
      }
      its = its.withRouting(its.routing().withRouter(new Router.Rows(List.of(routers))));
    }
    return its.withListener(its.listener().map(listener -> inOrder(rowOf, listener)));
  }

  private static RoutingListener inOrder(int[] rowOf, RoutingListener listener) {
    return (layer, module, rows, tokens, topK, indices, weights) -> {
      var inOrder = new int[indices.length];
      var theirs = new float[weights.length];
      int each = tokens * topK;
      for (int i = 0; i < rows; i++) {
        System.arraycopy(indices, rowOf[i] * each, inOrder, i * each, each);
        System.arraycopy(weights, rowOf[i] * each, theirs, i * each, each);
      }
      listener.onRouting(layer, module, rows, tokens, topK, inOrder, theirs);
    };
  }

  /** The padding that all sequences have. */
  private int commonPadding() {
    return IntStream.range(0, slotOfRow.length)
        .filter(row -> slotOfRow[row] != GONE)
        .map(row -> cache.padding()[row])
        .min()
        .orElse(0);
  }

  private int rowOf(int slot) {
    for (int row = 0; row < slotOfRow.length; row++) {
      if (slotOfRow[row] == slot) {
        return row;
      }
    }
    throw new IllegalArgumentException("no sequence at " + slot);
  }

  /**
   * Runs new tokens through the model.
   *
   * @param ids {@code (rows, width)} row-major
   * @return the last position's logits {@code (rows, vocab)}
   */
  static float[] logits(Llama model, KvCache cache, long[] ids, int width, ForwardContext context) {
    int rows = ids.length / width;
    return logits(model, ids, rows, rows, input -> model.next(input, cache, context));
  }

  /**
   * Runs new tokens of several sequences, as {@link Llama#next(NDArray, KvCache, List,
   * ForwardContext)} does.
   *
   * @return the logits of each piece's last token {@code (pieces, vocab)}
   */
  static float[] logits(
      Llama model, KvCache cache, long[] ids, List<Ranges.Piece> pieces, ForwardContext context) {
    return logits(model, ids, 1, pieces.size(), input -> model.next(input, cache, pieces, context));
  }

  private static float[] logits(
      Llama model, long[] ids, int rows, int sequences, UnaryOperator<NDArray> pass) {
    try (var scope = model.manager().newSubManager()) {
      return pass.apply(Ops.of(scope, ids, rows, ids.length / rows)).toFloatArray();
    } catch (RuntimeException e) {
      // what was taken is free again
      if (TooLittleMemory.isReportedBy(e)) {
        throw new TooLittleMemory(
            "too little memory to compute %,d tokens of %d sequences at once"
                .formatted(ids.length, sequences));
      }
      throw e;
    }
  }

  @Override
  public void leave(int slot) {
    slotOfRow[rowOf(slot)] = GONE;
  }

  @Override
  public void close() {
    if (cache != null) {
      cache.close();
    }
    manager.close();
  }
}
