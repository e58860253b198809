package org.meteora.model;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.meteora.TooLittleMemory;
import org.meteora.nn.KvBlock;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * Keys and values of the tokens so far, {@code (batch, kvHeads, capacity, headDim)} for each layer.
 * Rows are left-padded: row b's first {@code padding[b]} positions are no tokens. Memory for more
 * positions is added when it is full. Or a pool, whose rows are blocks of {@link #BLOCK} positions
 * of any sequences. Not for training.
 */
public final class KvCache implements AutoCloseable {
  /** Positions of a block of a pool. */
  public static final int BLOCK = KvBlock.TOKENS;

  /** Positions added at a time. */
  private static final int GROW = 256;

  /**
   * Added to the score of a key that must not be seen; finite, so that a padding query's softmax
   * stays finite in every dtype.
   */
  public static final float MASKED = -30000;

  private final Architecture config;
  private final NDManager manager;
  private final Dtype dtype;
  private final NDArray[] keys;
  private final NDArray[] values;
  private final int[] padding;
  private int[] packed;
  private NDArray paddingMask;
  private int capacity;
  private int length;

  /**
   * @param parent its device is the cache's; the cache's memory goes with it or with {@link #close}
   * @param padding left padding of each row
   * @param expected positions that will be needed at least
   * @throws TooLittleMemory when they are not to be had
   */
  public KvCache(Architecture config, NDManager parent, Dtype dtype, int[] padding, int expected) {
    this(config, parent, dtype, padding);
    orClose(() -> reserve(expected));
  }

  private KvCache(Architecture config, NDManager parent, Dtype dtype, int[] padding) {
    this.config = config;
    this.manager = parent.newSubManager();
    this.dtype = dtype;
    this.padding = padding.clone();
    keys = new NDArray[config.numHiddenLayers()];
    values = new NDArray[config.numHiddenLayers()];
  }

  /**
   * A pool of blocks; nothing is in them, not even zeros: memory of the host is had when it is
   * written.
   *
   * @throws TooLittleMemory when they are not to be had
   */
  public static KvCache pool(Architecture config, NDManager parent, Dtype dtype, int blocks) {
    var pool = new KvCache(config, parent, dtype, new int[blocks]);
    pool.orClose(
        () -> {
          for (int layer = 0; layer < pool.keys.length; layer++) {
            pool.keys[layer] = pool.allocated(BLOCK, false);
            pool.values[layer] = pool.allocated(BLOCK, false);
          }
        });
    pool.capacity = BLOCK;
    return pool;
  }

  private void orClose(Runnable allocation) {
    try {
      allocation.run();
    } catch (RuntimeException | Error e) {
      manager.close(); // some layers have theirs
      throw e;
    }
  }

  /** Tokens (padding included) that every layer holds. */
  public int length() {
    return length;
  }

  /** Rows of a cache, blocks of a pool. */
  public int rows() {
    return padding.length;
  }

  /** Left padding of each row. */
  public int[] padding() {
    return padding.clone();
  }

  /** Decoder layers whose keys and values it holds. */
  public int layers() {
    return keys.length;
  }

  /**
   * Takes memory for so many positions in all.
   *
   * @throws TooLittleMemory when it is not to be had; some layers may have moved then, and the
   *     cache can only be closed
   */
  public void reserve(int positions) {
    if (positions <= capacity) {
      return;
    }
    int grown = (positions + GROW - 1) / GROW * GROW;
    for (int layer = 0; layer < keys.length; layer++) {
      keys[layer] = grown(keys[layer], grown);
      values[layer] = grown(values[layer], grown);
    }
    capacity = grown;
    maskPadding();
  }

  private NDArray grown(NDArray old, int positions) {
    // what stands where no token is must be finite: a weight of zero does not hide NaN
    var larger = allocated(positions, true);
    if (old != null) {
      if (length > 0) {
        try (var target = Ops.narrow(larger, 2, 0, length);
            var source = Ops.narrow(old, 2, 0, length)) {
          Ops.copy(target, source);
        }
      }
      old.close();
    }
    return larger;
  }

  private NDArray allocated(int positions, boolean zeros) {
    int heads = config.numKeyValueHeads();
    int dim = config.headDim();
    try {
      return zeros
          ? Ops.zeros(manager, dtype, padding.length, heads, positions, dim)
          : Ops.empty(manager, dtype, padding.length, heads, positions, dim);
    } catch (RuntimeException e) {
      if (!TooLittleMemory.isReportedBy(e)) {
        throw e;
      }
      long bytes = MemoryNeed.cacheBytes(config, dtype, padding.length, positions);
      throw new TooLittleMemory(
          "too little memory for the keys and values of %,d tokens: %,d MiB are needed; take fewer"
                  .formatted((long) padding.length * positions, bytes >> 20)
              + " sequences at once (--batch-size), or shorter ones");
    }
  }

  private void maskPadding() {
    if (paddingMask != null) {
      paddingMask.close();
      paddingMask = null;
    }
    if (Arrays.stream(padding).allMatch(each -> each == 0)) {
      return;
    }
    var mask = new float[padding.length * capacity];
    for (int row = 0; row < padding.length; row++) {
      Arrays.fill(mask, row * capacity, row * capacity + padding[row], MASKED);
    }
    try (var full = Ops.of(manager, mask, padding.length, 1, 1, capacity)) {
      paddingMask = Ops.convert(full, dtype);
      paddingMask.attach(manager);
    }
  }

  /**
   * Columns of a row, of one cache in another.
   *
   * @param fromRow row there
   * @param from its first column there
   * @param row row here
   * @param to its first column here
   */
  public record Columns(int fromRow, int from, int row, int to, int count) {}

  /**
   * Where a sequence's keys and values are.
   *
   * @param from its first column
   */
  public record Span(int row, int from, int count) {}

  /**
   * Says that its only row holds sequences of these lengths, one after another.
   *
   * @throws IllegalArgumentException when it has another number of rows, or too few columns
   */
  public void pack(int[] lengths) {
    int columns = Arrays.stream(lengths).sum();
    if (padding.length != 1 || padding[0] != 0 || columns > capacity) {
      throw new IllegalArgumentException(padding.length + " rows, " + columns + " columns");
    }
    packed = lengths.clone();
    length = columns;
  }

  /** Where its sequences are, in order. */
  public List<Span> spans() {
    var spans = new ArrayList<Span>();
    if (packed == null) {
      for (int row = 0; row < padding.length; row++) {
        spans.add(new Span(row, padding[row], length - padding[row]));
      }
    } else {
      int from = 0;
      for (int its : packed) {
        spans.add(new Span(0, from, its));
        from += its;
      }
    }
    return spans;
  }

  /**
   * Stores a layer's new keys and values behind the old ones.
   *
   * @param k {@code (batch, kvHeads, seq, headDim)}, and {@code v} as well
   * @return all so far, {@code (batch, kvHeads, length + seq, headDim)}, owned by {@code k}'s and
   *     {@code v}'s manager
   */
  public Layer append(int layer, NDArray k, NDArray v) {
    return new Layer(append(keys[layer], k), append(values[layer], v));
  }

  private NDArray append(NDArray store, NDArray fresh) {
    long seq = fresh.getShape().get(2);
    try (var slot = Ops.narrow(store, 2, length, seq)) {
      Ops.copy(slot, fresh);
    }
    return columns(store, 0, length + seq, fresh.getManager());
  }

  /** A layer's keys and values, {@code (batch, kvHeads, positions, headDim)} each. */
  public record Layer(NDArray keys, NDArray values) {}

  /** The memory of a layer; valid until it grows, loses rows or closes. */
  public Layer layer(int layer) {
    return new Layer(keys[layer], values[layer]);
  }

  /**
   * A view of these positions, {@code (batch, kvHeads, count, headDim)}, owned by {@code owner}.
   */
  public NDArray columns(NDArray store, long from, long count, NDManager owner) {
    var all = Ops.narrow(store, 2, from, count);
    all.attach(owner);
    return all;
  }

  /** Positions there is room for. */
  public int capacity() {
    return capacity;
  }

  /** Counts the tokens of a finished pass, or of what was copied into it. */
  public void advance(int tokens) {
    length += tokens;
  }

  /**
   * {@code (batch, 1, 1, length + tokens)} to add to scores, or null without padding; owned by
   * {@code owner}.
   */
  public NDArray paddingMask(NDManager owner, int tokens) {
    if (paddingMask == null) {
      return null;
    }
    var view = Ops.narrow(paddingMask, 3, 0, length + tokens);
    view.attach(owner);
    return view;
  }

  @Override
  public void close() {
    manager.close();
  }
}
