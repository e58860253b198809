package org.meteora.generate;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.stream.IntStream;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.moe.ForwardContext;

/**
 * Runs prompts through a model as one left-padded batch, in one or more passes: as many of the last
 * tokens of each as the one needs of which the least is known.
 */
final class PaddedPrefill implements Prefill {
  private final Llama model;
  private final KvCache cache;
  private final int[] padding;
  private final int width;
  private final long[] ids;
  private final boolean head;
  private final NDManager manager;
  private int done;
  private NDArray last;

  /**
   * @param padToken fills the left of shorter prompts
   * @param known what is known of each prompt's beginning
   * @param head whether logits are wanted, as {@link Llama#next} says
   */
  PaddedPrefill(
      Llama model, int padToken, List<int[]> prompts, List<Optional<Known>> known, boolean head) {
    this.model = model;
    this.head = head;
    int longest = prompts.stream().mapToInt(prompt -> prompt.length).max().orElseThrow();
    width =
        IntStream.range(0, prompts.size())
            .map(row -> prompts.get(row).length - known.get(row).map(Known::tokens).orElse(0))
            .max()
            .orElseThrow();
    padding = prompts.stream().mapToInt(prompt -> longest - prompt.length).toArray();
    ids = new long[prompts.size() * width];
    Arrays.fill(ids, padToken);
    for (int row = 0; row < prompts.size(); row++) {
      int[] prompt = prompts.get(row);
      int fresh = Math.min(width, prompt.length);
      for (int i = 1; i <= fresh; i++) {
        ids[(row + 1) * width - i] = prompt[prompt.length - i];
      }
    }
    cache = model.newCache(model.manager(), padding, longest + 1);
    manager = model.manager().newSubManager();
    try {
      for (int row = 0; row < prompts.size(); row++) {
        int count = prompts.get(row).length - width;
        if (count > 0) {
          var its = known.get(row).orElseThrow();
          its.copyTo(model.backend().ops(), cache, row, padding[row], count);
        }
      }
      cache.advance(longest - width);
    } catch (RuntimeException | Error e) {
      close();
      throw e;
    }
  }

  /** Columns that are still to be run. */
  int left() {
    return width - done;
  }

  /** The place in each row's prompt of the next column; negative where it is padding. */
  int[] places() {
    return Arrays.stream(padding).map(each -> cache.length() - each).toArray();
  }

  /** Runs the next columns. */
  void run(int columns, ForwardContext context) {
    int rows = padding.length;
    var some = new long[rows * columns];
    for (int row = 0; row < rows; row++) {
      System.arraycopy(ids, row * width + done, some, row * columns, columns);
    }
    if (last != null) {
      last.close();
    }
    last =
        ModelSession.run(
            manager, some, rows, rows, input -> model.next(input, cache, head, context));
    done += columns;
  }

  @Override
  public boolean isDone() {
    return done == width;
  }

  @Override
  public Optional<KvCache> cache() {
    return Optional.of(cache);
  }

  @Override
  public NDArray last() {
    return last;
  }

  @Override
  public void close() {
    manager.close();
    cache.close();
  }
}
