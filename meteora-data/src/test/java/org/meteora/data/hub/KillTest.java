package org.meteora.data.hub;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** A process that is killed at random moments and started again, until it has its file. */
class KillTest {
  private static final int SIZE = 48 << 20;
  private static final HubSettings.Layout LAYOUT = new HubSettings.Layout(4, 256 << 10, 4 << 20);
  private static final int BLOCKS = SIZE / LAYOUT.blockBytes();

  @TempDir Path folder;

  /** The process: fetches the one repository from the endpoint into the folder. */
  static final class Child {
    public static void main(String[] args) throws Exception {
      var environment = Map.of("HF_ENDPOINT", args[0]);
      var found = HubSettings.fromEnvironment(environment, Path.of(args[1]));
      var settings =
          new HubSettings(
              found.endpoint(),
              found.token(),
              found.cache(),
              found.timing(),
              LAYOUT,
              found.proxies());
      var hub = new HubClient(settings);
      new HubDownloader(hub)
          .download(
              new Repository(Repository.Type.DATASET, "org/data", "main"),
              List.of(),
              Path.of(args[1]));
    }
  }

  @Test
  void nothingThatWasFetchedIsFetchedAgain() throws Exception {
    var random = new Random(7);
    var content = Hubs.random(random, SIZE);
    var to = folder.resolve("to");
    try (var server = new FakeHub()) {
      server.add("f", content, true);
      server.microsPer64k = 12_000;
      int kills = 0;
      for (boolean finished = false; !finished; ) {
        var there = journaled(to.resolve("f.part.journal"));
        server.requests.clear();
        var child = start(server, to);
        if (kills < 8) {
          // some while the machine starts, most in the midst of blocks
          long until = System.nanoTime() + random.nextInt(500) * 1_000_000L;
          boolean early = random.nextInt(4) == 0;
          while (!early && server.onSecond().isEmpty() && child.isAlive()) {
            Thread.sleep(2);
            until = System.nanoTime() + random.nextInt(500) * 1_000_000L;
          }
          child.waitFor(Math.max(1, until - System.nanoTime()), TimeUnit.NANOSECONDS);
          child.destroyForcibly();
          finished = child.waitFor() == 0;
          kills += finished ? 0 : 1;
        } else {
          server.microsPer64k = 0;
          assertThat(child.waitFor(60, TimeUnit.SECONDS)).isTrue();
          assertThat(child.exitValue()).isZero();
          finished = true;
        }
        for (var request : server.onSecond()) {
          var range = request.headers().get("range").substring("bytes=".length()).split("-");
          for (long at = Long.parseLong(range[0]);
              at < Long.parseLong(range[1]);
              at += LAYOUT.blockBytes()) {
            assertThat(there).doesNotContain((int) (at / LAYOUT.blockBytes()));
          }
        }
        if (Files.exists(to.resolve("f"))) { // a kill may come just after the renaming
          assertThat(to.resolve("f")).hasBinaryContent(content);
        }
      }
      assertThat(kills).isGreaterThan(2);
      assertThat(to.resolve("f")).hasBinaryContent(content);
      assertThat(to.resolve("f.part")).doesNotExist();
      assertThat(to.resolve("f.part.journal")).doesNotExist();
      System.out.printf(
          "%d kills: %.1f MiB sent for a file of %d MiB, none of a block that was done%n",
          kills, server.bytesSent.get() / 0x1p20, SIZE >> 20);
    }
  }

  private static Process start(FakeHub server, Path to) throws Exception {
    return new ProcessBuilder(
            ProcessHandle.current().info().command().orElse("java"),
            "-Xmx64m",
            "-XX:TieredStopAtLevel=1",
            "-XX:+UseSerialGC",
            "-cp",
            System.getProperty("java.class.path"),
            Child.class.getName(),
            server.endpoint().toString(),
            to.toString())
        .redirectErrorStream(true)
        .redirectOutput(ProcessBuilder.Redirect.DISCARD)
        .start();
  }

  /** The blocks of whole lines, read independently of the code under test. */
  private static Set<Integer> journaled(Path journal) throws Exception {
    var blocks = new HashSet<Integer>();
    if (Files.exists(journal)) {
      for (var line : Files.readString(journal).split("(?<=\n)")) {
        if (line.matches("[0-9a-f]{8} [0-9a-f]{8} [0-9a-f]{8}\n")) {
          blocks.add(Integer.parseInt(line.substring(0, 8), 16));
        }
      }
    }
    assertThat(blocks.size()).isLessThanOrEqualTo(BLOCKS);
    return blocks;
  }
}
