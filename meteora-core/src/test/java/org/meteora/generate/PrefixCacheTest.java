package org.meteora.generate;

import static org.assertj.core.api.Assertions.assertThat;

import ai.djl.Device;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.meteora.model.KvCache;
import org.meteora.model.MemoryNeed;
import org.meteora.moe.Router;
import org.meteora.moe.RoutingSettings;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;

/** What is kept of beginnings, for whom, and what gives way. */
class PrefixCacheTest {
  private static final GenerationConfig CONFIG = GenerationConfig.greedy(List.of(), 90);

  private static Sequence sequence(int header, int last, Router router, boolean heard) {
    var prompt = Arrays.copyOf(new Random(header).ints(70, 10, 70).toArray(), 75);
    Arrays.fill(prompt, 70, 75, last);
    var request = new Request(prompt, CONFIG, 0);
    if (heard) {
      request = request.listenedBy((layer, module, rows, tokens, k, indices, weights) -> {});
    }
    return new Sequence(0, request, 90, RoutingSettings.DEFAULT.withRouter(router));
  }

  private static Optional<Integer> found(PrefixCache cache, List<Sequence> all, int which) {
    return cache.find(which, all.get(which).tokens()).map(PrefixCache.Hit::tokens);
  }

  @Test
  void whatWasUsedLongestAgoGivesWay() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = RequestsTest.model(manager);
      var all = new ArrayList<Sequence>();
      for (int i = 0; i < 6; i++) {
        all.add(sequence(i / 2, i, Router.GATES, false));
      }
      long each = MemoryNeed.cacheBytes(llama.config(), Dtype.F32, 1, KvCache.BLOCK);
      try (var filled = llama.newCache(manager, new int[1], 80);
          var cache = new PrefixCache(llama, all, 2 * each)) {
        filled.setPadding(new int[1], 75);
        for (int i = 0; i < 4; i += 2) {
          assertThat(cache.isWorthKeeping(i, all.get(i).tokens())).isTrue();
          cache.keep(i, all.get(i).tokens(), filled, 0);
          assertThat(cache.isWorthKeeping(i, all.get(i).tokens())).isFalse();
        }
        assertThat(found(cache, all, 3)).contains(64);
        assertThat(found(cache, all, 1)).contains(64); // the first is used once more
        cache.keep(4, all.get(4).tokens(), filled, 0);
        assertThat(found(cache, all, 1)).contains(64);
        assertThat(found(cache, all, 3)).isEmpty();
        assertThat(found(cache, all, 5)).contains(64);
        cache.close(); // a batch that needs the memory
        assertThat(found(cache, all, 1)).isEmpty();
      }
      try (var cache = new PrefixCache(llama, all, each - 1)) {
        assertThat(cache.isWorthKeeping(0, all.get(0).tokens())).isFalse();
        assertThat(cache.sharedBy(0)).isZero();
      }
    }
  }

  /** The same tokens have other keys and values when others act on them. */
  @Test
  void onlyWhoIsRoutedAlikeShares() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = RequestsTest.model(manager);
      var reads = new FailingSessionTest.ReadsPlaces();
      var all =
          List.of(
              sequence(1, 1, Router.fixed(2), false),
              sequence(1, 2, Router.fixed(3), false),
              sequence(1, 3, Router.fixed(2), false),
              sequence(1, 4, Router.fixed(2), true),
              sequence(1, 5, reads, false),
              sequence(1, 6, reads, false));
      try (var filled = llama.newCache(manager, new int[1], 80);
          var cache = new PrefixCache(llama, all)) {
        assertThat(List.of(0, 1, 2, 3, 4, 5).stream().map(cache::sharedBy))
            .containsExactly(64, 0, 64, 0, 0, 0);
        filled.setPadding(new int[1], 75);
        cache.keep(0, all.getFirst().tokens(), filled, 0);
        for (int i = 0; i < all.size(); i++) {
          assertThat(found(cache, all, i).isPresent()).as("%d", i).isEqualTo(i == 0 || i == 2);
        }
      }
    }
  }
}
