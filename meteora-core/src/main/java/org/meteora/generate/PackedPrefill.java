package org.meteora.generate;

import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.model.Ranges;
import org.meteora.moe.ForwardContext;

/**
 * Runs prompts through a model one after another in one row: no more than the tokens of each that
 * are not known is computed, however different their lengths are. A pass ends where its budget
 * does, within a prompt too.
 */
final class PackedPrefill implements Prefill {
  private final Llama model;
  private final List<int[]> prompts;
  private final int[] first; // column of each prompt
  private final int[] there; // how many of its tokens have been run, or were known
  private final KvCache cache;
  private int current; // the first prompt of which something is left
  private float[] logits;

  /**
   * @param known what is known of each prompt's beginning
   */
  PackedPrefill(Llama model, List<int[]> prompts, List<Optional<Known>> known) {
    this.model = model;
    this.prompts = prompts;
    first = new int[prompts.size()];
    there = new int[prompts.size()];
    int columns = 0;
    for (int i = 0; i < first.length; i++) {
      first[i] = columns;
      columns += prompts.get(i).length;
    }
    cache = model.newCache(model.manager(), new int[1], columns);
    try {
      cache.pack(prompts.stream().mapToInt(prompt -> prompt.length).toArray());
      for (int i = 0; i < first.length; i++) {
        if (known.get(i).isPresent()) {
          var hit = known.get(i).get();
          there[i] = hit.tokens();
          hit.copyTo(model.backend().ops(), cache, 0, first[i], there[i]);
        }
      }
    } catch (RuntimeException | Error e) {
      cache.close();
      throw e;
    }
  }

  @Override
  public boolean isDone() {
    return current == prompts.size();
  }

  /** The first prompt of which something is left. */
  int current() {
    return current;
  }

  /** What comes next, so many tokens at most: a piece of {@link #current}, and of those behind. */
  List<Ranges.Piece> next(long most) {
    var pieces = new ArrayList<Ranges.Piece>();
    long left = most;
    for (int i = current; i < first.length && left > 0; i++) {
      int count = (int) Math.min(left, prompts.get(i).length - there[i]);
      pieces.add(new Ranges.Piece(first[i], there[i], count));
      left -= count;
    }
    return pieces;
  }

  /** Runs what {@link #next} gave. */
  void run(List<Ranges.Piece> pieces, ForwardContext context) {
    int begin = current;
    int tokens = pieces.stream().mapToInt(Ranges.Piece::count).sum();
    var ids = new long[tokens];
    int at = 0;
    for (int i = 0; i < pieces.size(); i++) {
      var piece = pieces.get(i);
      for (int j = 0; j < piece.count(); j++) {
        ids[at++] = prompts.get(begin + i)[piece.known() + j];
      }
    }
    var its = ModelSession.logits(model, cache, ids, pieces, context);
    int vocab = its.length / pieces.size();
    if (logits == null) {
      logits = new float[prompts.size() * vocab];
    }
    for (int i = 0; i < pieces.size(); i++) {
      there[begin + i] += pieces.get(i).count();
      if (there[begin + i] == prompts.get(begin + i).length) {
        System.arraycopy(its, i * vocab, logits, current * vocab, vocab);
        current++;
      }
    }
  }

  @Override
  public Optional<KvCache> cache() {
    return Optional.of(cache);
  }

  @Override
  public float[] logits() {
    return logits;
  }

  @Override
  public void close() {
    cache.close();
  }
}
