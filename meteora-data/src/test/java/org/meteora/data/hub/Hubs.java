package org.meteora.data.hub;

import java.net.URI;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Optional;

/** Settings for tests: short times, small blocks. */
final class Hubs {
  static final Timing FAST =
      new Timing(
          Duration.ofSeconds(2),
          Duration.ofMillis(250),
          Duration.ofMillis(1),
          Duration.ofMillis(8),
          Duration.ofSeconds(2),
          8,
          Duration.ZERO);

  private Hubs() {}

  static HubSettings settings(FakeHub hub, Path cache, HubSettings.Layout layout) {
    return settings(hub, cache, layout, FAST);
  }

  static HubSettings settings(FakeHub hub, Path cache, HubSettings.Layout layout, Timing timing) {
    return settings(hub.endpoint(), cache, layout, timing);
  }

  static HubSettings settings(URI hub, Path cache, HubSettings.Layout layout, Timing timing) {
    return new HubSettings(hub, Optional.of("hf_secret"), cache, timing, layout, Proxies.NONE);
  }

  static byte[] random(java.util.Random random, int size) {
    var bytes = new byte[size];
    random.nextBytes(bytes);
    return bytes;
  }
}
