package org.meteora.generate;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import ai.djl.Device;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Optional;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.RoutingSettings;
import org.meteora.tensor.Devices;

/**
 * Sequences one after another in one row, as far as no GPU is needed: where their keys and values
 * go, and what is said of their routing.
 */
class PackedSequencesTest {
  private static final ForwardContext CONTEXT =
      ForwardContext.inference(RoutingSettings.DEFAULT, Flags.AUTO);
  private static final GenerationConfig GREEDY = GenerationConfig.greedy(List.of(), 90);

  private static List<int[]> prompts(long seed, int... lengths) {
    var random = new Random(seed);
    return Arrays.stream(lengths).mapToObj(length -> random.ints(length, 1, 70).toArray()).toList();
  }

  /** Keys and values as a padded prefill leaves them. */
  private static KvCache padded(Llama llama, List<int[]> prompts) {
    var prefill =
        new PaddedPrefill(
            llama, 0, prompts, Collections.nCopies(prompts.size(), Optional.empty()), true);
    prefill.run(prefill.left(), CONTEXT);
    return prefill.cache().orElseThrow();
  }

  /** The same numbers, of each prompt alone, one after another. */
  private static KvCache packed(Llama llama, List<int[]> prompts) {
    var lengths = prompts.stream().mapToInt(prompt -> prompt.length).toArray();
    var cache = llama.newCache(llama.manager(), new int[1], Arrays.stream(lengths).sum());
    cache.pack(lengths);
    for (int i = 0; i < lengths.length; i++) {
      var span = cache.spans().get(i);
      try (var alone = padded(llama, prompts.subList(i, i + 1))) {
        var columns = List.of(new KvCache.Columns(0, 0, 0, span.from(), span.count()));
        llama.backend().ops().copyColumns(alone, cache, columns);
      }
    }
    return cache;
  }

  /** A session's sequences: their blocks, the newest tokens, and what they have come to. */
  private static final class Stepped {
    final ModelSession session;
    final List<int[]> tables = new ArrayList<>();
    final List<Integer> lengths = new ArrayList<>();
    int[] newest = {};

    Stepped(ModelSession session) {
      this.session = session;
    }

    void join(KvCache filled, int... first) {
      try (filled) {
        var columns = new ArrayList<KvCache.Columns>();
        for (var span : filled.spans()) {
          var table = new int[] {tables.size() % 2 == 0 ? tables.size() + 1 : tables.size() - 1};
          tables.add(table);
          lengths.add(span.count());
          columns.addAll(Known.columns(span, 0, table));
        }
        session.join(filled, columns);
      }
      int before = newest.length;
      newest = Arrays.copyOf(newest, before + first.length);
      System.arraycopy(first, 0, newest, before, first.length);
    }

    String steps(int count) {
      var seen = new StringBuilder();
      for (int step = 0; step < count; step++) {
        var rows = new ArrayList<DecodeSession.Next>();
        for (int i = 0; i < newest.length; i++) {
          rows.add(
              new DecodeSession.Next(
                  tables.get(i),
                  lengths.get(i),
                  newest[i],
                  new int[0],
                  0,
                  0,
                  GREEDY,
                  Optional.empty()));
          lengths.set(i, lengths.get(i) + 1);
        }
        newest = session.step(rows, false);
        seen.append(Arrays.toString(newest));
      }
      return seen.toString();
    }
  }

  @Test
  void aSessionGoesOnWithThemAsWithPaddedOnes() {
    var first = prompts(1, 5, 1, 9);
    var later = prompts(2, 2, 20);
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = RequestsTest.model(manager);
      try (var expected = new ModelSession(llama, 6, 32, CONTEXT);
          var session = new ModelSession(llama, 6, 32, CONTEXT)) {
        var padded = new Stepped(expected);
        var packed = new Stepped(session);
        padded.join(padded(llama, first), 3, 30, 60);
        packed.join(packed(llama, first), 3, 30, 60);
        assertThat(packed.steps(4)).isEqualTo(padded.steps(4));
        padded.join(padded(llama, later), 9, 8);
        packed.join(packed(llama, later), 9, 8);
        assertThat(packed.steps(4)).isEqualTo(padded.steps(4));
      }
    }
  }

  @Test
  void aPackedCacheHasOneRow() {
    try (var manager = Devices.newManager(Device.cpu());
        var two = RequestsTest.model(manager).newCache(manager, new int[] {4, 0}, 10)) {
      assertThatThrownBy(() -> two.pack(new int[] {1, 2}))
          .isInstanceOf(IllegalArgumentException.class);
      two.advance(6);
      assertThat(two.spans()).containsExactly(new KvCache.Span(0, 4, 2), new KvCache.Span(1, 0, 6));
    }
  }

  /** Each token once, though the second sequence's first two were run before. */
  @Test
  void eachListenerHasTheRoutingOfItsOwnTokens() {
    var chosen = List.of(new ArrayList<Integer>(), new ArrayList<Integer>());
    var sequences = new ArrayList<Sequence>();
    for (var its : chosen) {
      var request =
          new Request(new int[] {1, 2, 3, 4}, GREEDY, 0)
              .listenedBy(
                  (layer, module, rows, tokens, k, indices, weights) ->
                      Arrays.stream(indices).forEach(its::add));
      sequences.add(new Sequence(sequences.size(), request, 90, RoutingSettings.DEFAULT));
    }
    sequences.get(1).reported = 2;
    var dispatcher = new RoutingDispatcher();
    dispatcher.begin(
        List.of(
            new RoutingDispatcher.Row(sequences.get(0), 0, 1),
            new RoutingDispatcher.Row(sequences.get(1), 1, 3)));
    int[] indices = {0, 1, 10, 11, 20, 21, 30, 31};
    dispatcher.onRouting(0, 0, 1, 4, 2, indices, new float[8]);
    assertThat(chosen.get(0)).isEmpty();
    dispatcher.end();
    assertThat(chosen.get(0)).containsExactly(0, 1);
    assertThat(chosen.get(1)).containsExactly(20, 21, 30, 31);
    assertThat(sequences.get(0).reported).isEqualTo(1);
    assertThat(sequences.get(1).reported).isEqualTo(4);
  }
}
