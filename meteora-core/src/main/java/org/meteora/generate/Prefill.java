package org.meteora.generate;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.Router;

/** Runs prompts through a model, as one left-padded batch. */
final class Prefill {
  private final Llama model;
  private final int padToken;
  private final Optional<PrefixCache> prefixes;

  /**
   * @param padToken fills the left of shorter prompts
   * @param prefixes keys and values of beginnings that were computed before
   */
  Prefill(Llama model, int padToken, Optional<PrefixCache> prefixes) {
    this.model = model;
    this.padToken = padToken;
    this.prefixes = prefixes;
  }

  /**
   * @param cache keys and values of the prompts, a row each
   * @param logits of their last tokens {@code (rows, vocab)}
   */
  record Filled(KvCache cache, float[] logits) {}

  /**
   * Computes what is not known of the prompts: as many of the last tokens of each as the one needs
   * of which the least is known.
   */
  Filled run(List<int[]> prompts, ForwardContext context) {
    int longest = prompts.stream().mapToInt(prompt -> prompt.length).max().orElseThrow();
    var known = new int[prompts.size()];
    var hits = new ArrayList<PrefixCache.Hit>();
    int width = 0;
    for (int row = 0; row < known.length; row++) {
      int[] prompt = prompts.get(row);
      var hit = prefixes.flatMap(all -> all.find(prompt));
      hits.add(hit.orElse(null));
      width = Math.max(width, prompt.length - hit.map(PrefixCache.Hit::tokens).orElse(0));
    }
    var padding = prompts.stream().mapToInt(prompt -> longest - prompt.length).toArray();
    var cache = model.newCache(model.manager(), padding, longest + 1);
    try {
      for (int row = 0; row < known.length; row++) {
        int count = prompts.get(row).length - width;
        if (count > 0) {
          hits.get(row).copyTo(cache, row, padding[row], count);
        }
      }
      cache.setPadding(padding, longest - width);
      var ids = new long[prompts.size() * width];
      Arrays.fill(ids, padToken);
      for (int row = 0; row < known.length; row++) {
        int[] prompt = prompts.get(row);
        int fresh = Math.min(width, prompt.length);
        for (int i = 0; i < fresh; i++) {
          ids[(row + 1) * width - fresh + i] = prompt[prompt.length - fresh + i];
        }
      }
      return new Filled(cache, ModelSession.logits(model, cache, ids, width, context));
    } catch (RuntimeException | Error e) {
      cache.close();
      throw e;
    }
  }

  /** With a router that reads the prompts, or looks at them first: what serves these. */
  ForwardContext chosen(List<int[]> prompts, ForwardContext context) {
    var routing = context.routing();
    if (routing.router() instanceof Router.Reading reading) {
      return context.withRouting(routing.withRouter(reading.of(prompts)));
    }
    if (!(routing.router() instanceof Router.Probing probing)) {
      return context;
    }
    var probe = probing.probe();
    var along = context.withRouting(routing.withRouter(probe)).withListener(Optional.empty());
    run(prompts, along).cache().close();
    return context.withRouting(routing.withRouter(probe.chosen(routing.topK())));
  }
}
