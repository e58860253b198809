package org.meteora.generate;

import java.util.List;
import java.util.Optional;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.model.Ranges;
import org.meteora.moe.ForwardContext;

/** Runs prompts into the only row of a cache of their own. */
final class PackedPrefill extends OneRowPrefill {
  private final Llama model;
  private final int[] first; // column of each prompt
  private final KvCache cache;

  /**
   * @param known what is known of each prompt's beginning
   */
  PackedPrefill(Llama model, List<int[]> prompts, List<Optional<Known>> known) {
    super(prompts, known.stream().mapToInt(its -> its.map(Known::tokens).orElse(0)).toArray());
    this.model = model;
    first = new int[prompts.size()];
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
          hit.copyTo(model.backend().ops(), cache, 0, first[i], hit.tokens());
        }
      }
    } catch (RuntimeException | Error e) {
      cache.close();
      throw e;
    }
  }

  @Override
  float[] logits(long[] ids, List<Piece> pieces, ForwardContext context) {
    var ranges =
        pieces.stream()
            .map(each -> new Ranges.Piece(first[each.prompt()], each.first(), each.count()))
            .toList();
    return ModelSession.logits(
        model, ids, 1, ranges.size(), input -> model.next(input, cache, ranges, context));
  }

  @Override
  public Optional<KvCache> cache() {
    return Optional.of(cache);
  }

  @Override
  public void close() {
    cache.close();
  }
}
