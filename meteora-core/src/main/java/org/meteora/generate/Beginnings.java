package org.meteora.generate;

import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.stream.IntStream;
import org.meteora.moe.Router;

/** Which sequences have the same keys and values where they have the same tokens, and where. */
final class Beginnings {
  /** Passes of as many tokens as are computed in one, in which what a pass costs by itself goes. */
  private static final int PASSES = 32;

  private final int[] routings;
  private final int[] shared;
  private final int worth; // tokens at least that are worth a prefill of one prompt alone

  /**
   * @param step beginnings are multiples of so many tokens
   * @param passTokens of a pass that takes much longer than one of a single token
   */
  Beginnings(List<Sequence> sequences, int step, int passTokens) {
    worth = Math.max(2 * step, passTokens / PASSES);
    routings = routings(sequences);
    shared = new int[routings.length];
    int distinct = Arrays.stream(routings).max().orElse(-1) + 1;
    for (int routing = 0; routing < distinct; routing++) {
      int its = routing;
      var alike = IntStream.range(0, routings.length).filter(i -> routings[i] == its).toArray();
      var same = shared(Arrays.stream(alike).mapToObj(i -> sequences.get(i).prompt).toList(), step);
      for (int i = 0; i < alike.length; i++) {
        shared[alike[i]] = same[i];
      }
    }
  }

  /**
   * Sequences of one number have the same keys and values where they have the same tokens; −1 for
   * those that are alone in that, or listened to: their tokens must all be run.
   */
  private static int[] routings(List<Sequence> sequences) {
    var numbers = new HashMap<Object, Integer>();
    return sequences.stream()
        .mapToInt(
            each ->
                switch (each.routing.router()) {
                  case Router router when each.listener.isPresent() -> -1;
                  case Router.Probing alone -> -1;
                  case Router.Reading alone -> -1;
                  case Router.Fixed fixed -> numbers.computeIfAbsent(fixed, key -> numbers.size());
                  default -> numbers.computeIfAbsent(each.routing, key -> numbers.size());
                })
        .toArray();
  }

  /** How many of its first tokens each prompt has in common with another, in whole steps. */
  static int[] shared(List<int[]> prompts, int step) {
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
        int most = Math.min(same, prompts.get(which).length - 1) / step * step;
        shared[which] = Math.max(shared[which], most);
      }
    }
    return shared;
  }

  /** Who routes a sequence, as a number; negative: nobody has its keys and values. */
  int routing(int sequence) {
    return routings[sequence];
  }

  /**
   * Whether others wait for a sequence's prompt: it begins as another does for a good part, and
   * that is not known yet.
   *
   * @param length of its tokens
   * @param known how many are known
   */
  boolean goesAhead(int sequence, int length, int known) {
    int fresh = shared[sequence] - known;
    return fresh >= worth && 4 * fresh >= length;
  }
}
