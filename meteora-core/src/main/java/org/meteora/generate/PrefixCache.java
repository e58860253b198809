package org.meteora.generate;

import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.stream.IntStream;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;

/**
 * Keys and values of beginnings that several prompts share, computed once. Found by their tokens,
 * in steps of {@link #STEP}; one cache serves one setting of the routing. Beginnings that were used
 * longest ago are given up when there are too many.
 */
final class PrefixCache implements AutoCloseable {
  /** Beginnings are multiples of so many tokens. */
  static final int STEP = 32;

  /** Tokens that are worth a prefill of one prompt alone. */
  private static final int WORTH = 2 * STEP;

  /** Tokens that are kept at most. */
  private static final long CAPACITY = 1 << 14;

  /** A beginning, equal to another of the same tokens. */
  private record Key(int hash, int[] tokens, int length) {
    static Key of(int[] tokens, int length) {
      int hash = 1;
      for (int i = 0; i < length; i++) {
        hash = 31 * hash + tokens[i];
      }
      return new Key(hash, tokens, length);
    }

    @Override
    public int hashCode() {
      return hash;
    }

    @Override
    public boolean equals(Object other) {
      return other instanceof Key key
          && key.length == length
          && Arrays.equals(tokens, 0, length, key.tokens, 0, length);
    }
  }

  private final Llama model;

  private record Kept(KvCache cache, int length) {}

  private final Map<Key, Kept> kept = new LinkedHashMap<>(16, 0.75f, true);
  private final int[] shared;
  private long tokensKept;
  private long tokensSpared;

  /**
   * @param prompts that will be asked for
   */
  PrefixCache(Llama model, List<int[]> prompts) {
    this.model = model;
    this.shared = shared(prompts);
  }

  /** How many of its first tokens each prompt has in common with another, in whole steps. */
  static int[] shared(List<int[]> prompts) {
    var order =
        IntStream.range(0, prompts.size())
            .boxed()
            .sorted((a, b) -> Arrays.compare(prompts.get(a), prompts.get(b)))
            .toList();
    var shared = new int[prompts.size()];
    for (int i = 1; i < order.size(); i++) {
      int[] a = prompts.get(order.get(i - 1));
      int[] b = prompts.get(order.get(i));
      int difference = Arrays.mismatch(a, b);
      int same = difference < 0 ? a.length : difference;
      for (int which : new int[] {order.get(i - 1), order.get(i)}) {
        // the last token is always computed: its logits are wanted
        int most = Math.min(same, prompts.get(which).length - 1) / STEP * STEP;
        shared[which] = Math.max(shared[which], most);
      }
    }
    return shared;
  }

  /** What is known of a prompt. */
  final class Hit {
    private final KvCache cache;
    private final int tokens;

    private Hit(KvCache cache, int tokens) {
      this.cache = cache;
      this.tokens = tokens;
    }

    int tokens() {
      return tokens;
    }

    /** Copies the first {@code count} tokens' keys and values to a row. */
    void copyTo(KvCache to, int row, int column, int count) {
      var columns = List.of(new KvCache.Columns(0, 0, row, column, count));
      model.backend().ops().copyColumns(cache, to, columns);
      tokensSpared += count;
    }
  }

  /** The longest beginning of a prompt that is known. */
  Optional<Hit> find(int[] prompt) {
    for (int length = (prompt.length - 1) / STEP * STEP; length > 0; length -= STEP) {
      var found = kept.get(Key.of(prompt, length));
      if (found != null) {
        return Optional.of(new Hit(found.cache, length));
      }
    }
    return Optional.empty();
  }

  /** How many of its first tokens a prompt has in common with another. */
  int sharedBy(int prompt) {
    return shared[prompt];
  }

  /** Whether a prompt begins as another does for a good part, and that is not known yet. */
  boolean isWorthKeeping(int prompt, int[] tokens) {
    int fresh = shared[prompt] - find(tokens).map(Hit::tokens).orElse(0);
    return fresh >= WORTH && 4 * fresh >= tokens.length;
  }

  /** Keeps what a prompt has in common with another. */
  void keep(int prompt, int[] tokens, KvCache filled, int row) {
    int length = shared[prompt];
    if (length == 0 || length > CAPACITY) {
      return;
    }
    var cache = model.newCache(model.manager(), new int[1], length);
    var entry = new Kept(cache, length);
    var columns = List.of(new KvCache.Columns(row, filled.padding()[row], 0, 0, length));
    try {
      model.backend().ops().copyColumns(filled, cache, columns);
    } catch (RuntimeException | Error e) {
      cache.close();
      throw e;
    }
    for (int at = STEP; at <= length; at += STEP) {
      kept.putIfAbsent(Key.of(tokens, at), entry);
    }
    tokensKept += length;
    while (tokensKept > CAPACITY) {
      forget(kept.values().iterator().next());
    }
  }

  private void forget(Kept entry) {
    kept.values().removeIf(each -> each == entry);
    tokensKept -= entry.length;
    entry.cache.close();
  }

  /** Tokens that were not computed again. */
  long tokensSpared() {
    return tokensSpared;
  }

  @Override
  public void close() {
    kept.values().stream().map(Kept::cache).distinct().forEach(KvCache::close);
    kept.clear();
  }
}
