package org.meteora.generate;

import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.LongSupplier;
import java.util.stream.IntStream;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.model.MemoryNeed;
import org.meteora.moe.Router;

/**
 * Keys and values of beginnings that several prompts share, computed once. Found by their tokens,
 * in steps of {@link #STEP}, and by who routes them. Those that were used longest ago are given up
 * when all take too much memory.
 */
final class PrefixCache implements AutoCloseable {
  /** Beginnings are multiples of so many tokens. */
  static final int STEP = 32;

  /** Tokens at least that are worth a prefill of one prompt alone. */
  private static final int WORTH = 2 * STEP;

  /** Passes of as many tokens as are computed in one, in which what a pass costs by itself goes. */
  private static final int PASSES = 32;

  /** Bytes that are kept at most, and of what is free. */
  private static final long MOST = 2L << 30;

  private static final int SHARE = 8;

  /** A beginning, equal to another of the same tokens that is routed alike. */
  private record Key(int hash, int routing, int[] tokens, int length) {
    static Key of(int routing, int[] tokens, int length) {
      int hash = routing;
      for (int i = 0; i < length; i++) {
        hash = 31 * hash + tokens[i];
      }
      return new Key(hash, routing, tokens, length);
    }

    @Override
    public int hashCode() {
      return hash;
    }

    @Override
    public boolean equals(Object other) {
      return other instanceof Key key
          && key.length == length
          && key.routing == routing
          && Arrays.equals(tokens, 0, length, key.tokens, 0, length);
    }
  }

  private record Kept(KvCache cache, int length, long bytes) {}

  private final Llama model;
  private final long capacity;
  private final int worth;
  private final Map<Key, Kept> kept = new HashMap<>();
  private final LinkedHashSet<Kept> byUse = new LinkedHashSet<>(); // longest ago first
  private final int[] routings;
  private final int[] shared;
  private long bytesKept;
  private long tokensSpared;

  /**
   * @param sequences that will be asked for, by their places
   */
  PrefixCache(Llama model, List<Sequence> sequences) {
    this(model, sequences, 0);
  }

  /**
   * @param passTokens of a pass that takes much longer than one of a single token
   */
  PrefixCache(Llama model, List<Sequence> sequences, int passTokens) {
    this(
        model,
        sequences,
        Math.max(WORTH, passTokens / PASSES),
        () -> Math.min(MOST, model.backend().memory(0).free() / SHARE));
  }

  /**
   * @param capacity bytes that are kept at most
   */
  PrefixCache(Llama model, List<Sequence> sequences, long capacity) {
    this(model, sequences, WORTH, () -> capacity);
  }

  /**
   * @param worth tokens that are worth a prefill of one prompt alone
   * @param most asked only where there is something to keep
   */
  private PrefixCache(Llama model, List<Sequence> sequences, int worth, LongSupplier most) {
    this.model = model;
    this.worth = worth;
    routings = routings(sequences);
    shared = new int[routings.length];
    int distinct = Arrays.stream(routings).max().orElse(-1) + 1;
    for (int routing = 0; routing < distinct; routing++) {
      int its = routing;
      var alike = IntStream.range(0, routings.length).filter(i -> routings[i] == its).toArray();
      var same = shared(Arrays.stream(alike).mapToObj(i -> sequences.get(i).prompt).toList());
      for (int i = 0; i < alike.length; i++) {
        shared[alike[i]] = same[i];
      }
    }
    capacity = Arrays.stream(shared).anyMatch(tokens -> tokens > 0) ? most.getAsLong() : 0;
    for (int i = 0; i < shared.length; i++) {
      shared[i] = bytes(shared[i]) <= capacity ? shared[i] : 0;
    }
  }

  /**
   * Sequences of one number have the same keys and values where they have the same tokens; −1 for
   * those that are alone in that, or heard: their tokens must all be run.
   */
  private static int[] routings(List<Sequence> sequences) {
    var numbers = new HashMap<Object, Integer>();
    return sequences.stream()
        .mapToInt(
            each ->
                switch (each.routing.router()) {
                  case Router.Probing alone -> -1;
                  case Router.Reading alone -> -1;
                  case Router.Fixed fixed when each.listener.isEmpty() ->
                      numbers.computeIfAbsent(fixed, key -> numbers.size());
                  default ->
                      each.listener.isPresent()
                          ? -1
                          : numbers.computeIfAbsent(each.routing, key -> numbers.size());
                })
        .toArray();
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

  /** The longest beginning of a sequence's tokens that is known. */
  Optional<Hit> find(int sequence, int[] prompt) {
    if (routings[sequence] < 0) {
      return Optional.empty();
    }
    for (int length = (prompt.length - 1) / STEP * STEP; length > 0; length -= STEP) {
      var found = kept.get(Key.of(routings[sequence], prompt, length));
      if (found != null) {
        byUse.addLast(found);
        return Optional.of(new Hit(found.cache, length));
      }
    }
    return Optional.empty();
  }

  /** How many of its first tokens a prompt has in common with another, if they can be kept. */
  int sharedBy(int prompt) {
    return shared[prompt];
  }

  /** Whether a prompt begins as another does for a good part, and that is not known yet. */
  boolean isWorthKeeping(int prompt, int[] tokens) {
    int fresh = shared[prompt] - find(prompt, tokens).map(Hit::tokens).orElse(0);
    return fresh >= worth && 4 * fresh >= tokens.length;
  }

  /** A cache takes memory for whole blocks. */
  private long bytes(int tokens) {
    int columns = (tokens + KvCache.BLOCK - 1) / KvCache.BLOCK * KvCache.BLOCK;
    return MemoryNeed.cacheBytes(model.config(), model.dtype(), 1, columns);
  }

  /**
   * Keeps what a prompt that {@link #isWorthKeeping} has in common with another.
   *
   * @param which of the sequences in {@code filled}
   */
  void keep(int prompt, int[] tokens, KvCache filled, int which) {
    int length = shared[prompt];
    long bytes = bytes(length);
    while (bytesKept + bytes > capacity && !byUse.isEmpty()) {
      forget(byUse.getFirst());
    }
    var cache = model.newCache(model.manager(), new int[1], length);
    var entry = new Kept(cache, length, bytes);
    var its = filled.spans().get(which);
    var columns = List.of(new KvCache.Columns(its.row(), its.from(), 0, 0, length));
    try {
      model.backend().ops().copyColumns(filled, cache, columns);
    } catch (RuntimeException | Error e) {
      cache.close();
      throw e;
    }
    for (int at = STEP; at <= length; at += STEP) {
      kept.putIfAbsent(Key.of(routings[prompt], tokens, at), entry);
    }
    byUse.addLast(entry);
    bytesKept += bytes;
  }

  private void forget(Kept entry) {
    kept.values().removeIf(each -> each == entry);
    byUse.remove(entry);
    bytesKept -= entry.bytes;
    entry.cache.close();
  }

  /** Tokens that were not computed again. */
  long tokensSpared() {
    return tokensSpared;
  }

  /** Gives all memory back, for what needs it more. */
  @Override
  public void close() {
    List.copyOf(byUse).forEach(this::forget);
  }
}
