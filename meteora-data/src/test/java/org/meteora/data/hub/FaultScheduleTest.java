package org.meteora.data.hub;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.concurrent.Callable;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.UserException;

/**
 * Random schedules of faults, each with a fixed seed: a download ends with every byte right, or
 * with a clear error and nothing wrong under a file's own name; and a later try against a server
 * that behaves ends right whatever the first one left.
 */
class FaultScheduleTest {
  private static final int SCHEDULES = 240;

  @TempDir Path folder;

  @Test
  void everyScheduleEndsRightOrWithAClearError() throws Exception {
    var right = new AtomicInteger();
    var jobs = new ArrayList<Callable<Void>>();
    for (int seed = 0; seed < SCHEDULES; seed++) {
      int number = seed;
      jobs.add(
          () -> {
            try {
              if (schedule(number)) {
                right.incrementAndGet();
              }
              return null;
            } catch (Throwable e) {
              throw new AssertionError("seed " + number + ": " + e, e);
            }
          });
    }
    try (var pool = Executors.newFixedThreadPool(12)) {
      for (var result : pool.invokeAll(jobs)) {
        result.get();
      }
    }
    // both ends must be common, or the schedules test nothing
    assertThat(right.get()).isBetween(SCHEDULES / 4, SCHEDULES - 20);
    System.out.println(right + " of " + SCHEDULES + " schedules ended with every byte right");
  }

  private boolean schedule(int seed) throws Exception {
    var random = new Random(seed);
    var to = folder.resolve("s" + seed);
    try (var server = new FakeHub()) {
      for (int i = 1 + random.nextInt(4); i > 0; i--) {
        int size = random.nextInt(5) == 0 ? random.nextInt(3) : random.nextInt(150_000);
        server.add(
            "f" + i + (i % 2 == 0 ? "/a b.bin" : ""),
            Hubs.random(random, size),
            random.nextBoolean());
      }
      server.pageSize = 1 + random.nextInt(4);
      server.redirects = random.nextInt(4) > 0;
      server.faults = faults(random);
      var layout =
          new HubSettings.Layout(1 + random.nextInt(5), 1 << (10 + random.nextInt(4)), 1 << 14);
      var settings = Hubs.settings(server, folder.resolve("cache"), layout);
      boolean finished;
      var hub = new HubClient(settings);
      try {
        new HubDownloader(hub).download(repository(), List.of(), to);
        finished = true;
      } catch (UserException e) {
        finished = false;
        assertThat(e.getMessage()).isNotBlank().doesNotContain("\n");
      }
      check(server, to, finished);
      assertThat(server.onSecond()).noneMatch(r -> r.headers().containsKey("authorization"));
      server.faults = FakeHub.NO_FAULTS;
      new HubDownloader(hub).download(repository(), List.of(), to);
      check(server, to, true);
      return finished;
    }
  }

  private static Repository repository() {
    return new Repository(Repository.Type.MODEL, "org/repo", "main");
  }

  private static void check(FakeHub server, Path to, boolean finished) throws IOException {
    var seen = new ArrayList<String>();
    if (Files.exists(to)) {
      try (var walk = Files.walk(to)) {
        for (var file : (Iterable<Path>) walk.filter(Files::isRegularFile)::iterator) {
          var name = to.relativize(file).toString();
          if (server.files.containsKey(name)) {
            assertThat(Files.readAllBytes(file)).isEqualTo(server.files.get(name).content());
            seen.add(name);
          } else {
            assertThat(finished).as("left over: " + name).isFalse();
            assertThat(name).matches(".*\\.part(\\.journal)?");
          }
        }
      }
    }
    if (finished) {
      assertThat(seen).containsExactlyInAnyOrderElementsOf(server.files.keySet());
    }
  }

  /** Some of the faults, at some rate, for some time or for ever. */
  private static FakeHub.Faults faults(Random random) {
    var all = List.of(FakeHub.Fault.values());
    var chosen = new ArrayList<FakeHub.Fault>();
    for (int i = 1 + random.nextInt(3); i > 0; i--) {
      chosen.add(all.get(1 + random.nextInt(all.size() - 1)));
    }
    double rate = random.nextInt(4) == 0 ? 1 : 0.05 + 0.6 * random.nextDouble();
    int budget = random.nextInt(3) == 0 ? Integer.MAX_VALUE : random.nextInt(40);
    boolean listingToo = random.nextInt(3) == 0;
    var own = new Random(random.nextLong());
    var left = new AtomicInteger(budget);
    return new FakeHub.Faults() {
      @Override
      public synchronized FakeHub.Fault next(boolean content, String path) {
        if ((!content && !listingToo) || own.nextDouble() > rate || left.getAndDecrement() <= 0) {
          return FakeHub.Fault.NONE;
        }
        return chosen.get(own.nextInt(chosen.size()));
      }

      @Override
      public synchronized int at(int bound) {
        return bound <= 0 ? 0 : own.nextInt(bound);
      }
    };
  }
}
