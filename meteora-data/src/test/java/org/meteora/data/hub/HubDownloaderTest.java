package org.meteora.data.hub;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import java.util.Optional;
import java.util.Random;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.meteora.UserException;

class HubDownloaderTest {
  private static final Repository MODEL = new Repository(Repository.Type.MODEL, "org/repo", "main");
  private static final HubSettings.Layout SMALL = new HubSettings.Layout(4, 4096, 16384);

  @TempDir Path folder;
  private FakeHub server;
  private Path to;

  @BeforeEach
  void start() throws IOException {
    server = new FakeHub();
    to = folder.resolve("to");
  }

  @AfterEach
  void stop() throws IOException {
    server.close();
  }

  private HubSettings settings() {
    return Hubs.settings(server, folder.resolve("cache"), SMALL);
  }

  private HubDownloader.Result download(String... includes) throws InterruptedException {
    return download(settings(), includes);
  }

  private HubDownloader.Result download(HubSettings settings, String... includes)
      throws InterruptedException {
    var hub = new HubClient(settings);
    return new HubDownloader(hub).download(MODEL, List.of(includes), to);
  }

  private static byte[] bytes(int size) {
    return Hubs.random(new Random(size), size);
  }

  private long contentRequests() {
    return server.requests.stream().filter(r -> r.path().matches("/blob/.*|.*/resolve/.*")).count();
  }

  @Test
  void filesArriveTheTokenGoesToTheFirstHostOnlyAndASecondCallFetchesNothing() throws Exception {
    server.add("config.json", "{}".getBytes(), false);
    server.add("sub folder/größe+1.safetensors", bytes(200_000), true);
    server.add("empty", new byte[0], false);
    server.requiredToken = "hf_secret";
    assertThat(download().fetched()).isEqualTo(3);
    assertThat(to.resolve("sub folder/größe+1.safetensors")).hasBinaryContent(bytes(200_000));
    assertThat(to.resolve("config.json")).hasContent("{}");
    assertThat(to.resolve("empty")).isEmptyFile();
    assertThat(server.onSecond()).isNotEmpty();
    assertThat(server.onSecond()).noneMatch(r -> r.headers().containsKey("authorization"));
    assertThat(server.onSecond()).noneMatch(r -> r.headers().toString().contains("hf_secret"));
    long before = contentRequests();
    assertThat(download().fetched()).isZero();
    assertThat(contentRequests()).isEqualTo(before);
  }

  @Test
  void severalConnectionsFetchRangesThatCoverTheFileOnce() throws Exception {
    server.add("big", bytes(300_000), true);
    download();
    assertThat(server.bytesSent.get()).isEqualTo(300_000);
    var ranges = server.onSecond().stream().map(r -> r.headers().get("range")).toList();
    assertThat(ranges).hasSizeGreaterThan(8).doesNotHaveDuplicates();
    // the address behind the redirect is asked for again only when it stops working
    assertThat(server.requests.stream().filter(r -> r.path().contains("/resolve/")).count())
        .isLessThanOrEqualTo(SMALL.connections());
  }

  @Test
  void tenThousandFilesAreListedThroughPages() throws Exception {
    for (int i = 0; i < 10_000; i++) {
      server.add("data/file-%05d.bin".formatted(i), new byte[] {(byte) i}, false);
    }
    var hub = new HubClient(settings());
    var listing = hub.list(MODEL);
    assertThat(listing.files()).hasSize(10_000).doesNotHaveDuplicates();
    assertThat(listing.repository().revision()).isEqualTo(FakeHub.COMMIT);
    assertThat(server.requests).hasSize(11);
    assertThat(download("*-000?[0-4].bin").files()).hasSize(50);
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "../evil",
        "a/../../evil",
        "/etc/evil",
        "a//b",
        "./a",
        "..",
        "a/..",
        "C:/evil",
        "a\\..\\b",
        "a\u0000b",
        "a\nb",
        "",
        "a/"
      })
  void pathsThatClimbOutAreRefusedBeforeAnythingIsFetched(String path) throws Exception {
    server.add("good", bytes(10), false);
    server.add(path, bytes(10), false);
    assertThatThrownBy(() -> download("good"))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("leads out of the folder");
    assertThat(contentRequests()).isZero();
    assertThat(folder.resolve("evil")).doesNotExist();
  }

  @Test
  void linksThatLeadOutAreRefusedAndLinksInsideAreFollowed() throws Exception {
    var outside = Files.createDirectories(folder.resolve("outside"));
    Files.createDirectories(to.resolve("inside"));
    Files.createSymbolicLink(to.resolve("way"), outside);
    Files.createSymbolicLink(to.resolve("fine"), Path.of("inside"));
    server.add("fine/x", bytes(10), false);
    download();
    assertThat(to.resolve("inside/x")).hasBinaryContent(bytes(10));
    server.add("way/x", bytes(10), false);
    assertThatThrownBy(this::download).hasMessageContaining("which leads out of");
    server.files.remove("way/x");
    server.add("leaf", bytes(10), false);
    Files.createSymbolicLink(to.resolve("leaf"), outside.resolve("created"));
    assertThatThrownBy(this::download).hasMessageContaining("which leads out of");
    Files.delete(to.resolve("leaf"));
    Files.createSymbolicLink(to.resolve("leaf.part"), outside.resolve("created"));
    assertThatThrownBy(this::download).isInstanceOf(UserException.class);
    assertThat(outside).isEmptyDirectory();
  }

  @Test
  void aWrongHashLeavesNothing() throws Exception {
    server.addWithHash("lfs", bytes(50_000), "0".repeat(64));
    assertThatThrownBy(this::download)
        .isInstanceOf(UserException.class)
        .hasMessageContaining("has the hash " + FakeHub.sha256(bytes(50_000)));
    assertThat(to).isEmptyDirectory();
    server.files.clear();
    server.addWithHash("small", bytes(50), "0".repeat(40));
    assertThatThrownBy(this::download).hasMessageContaining(FakeHub.gitBlob(bytes(50)));
    assertThat(to).isEmptyDirectory();
  }

  @Test
  void aFileThatIsWrongOnDiskIsReplaced() throws Exception {
    server.add("f", bytes(9000), true);
    Files.createDirectories(to);
    Files.write(to.resolve("f"), new byte[9000]);
    assertThat(download().fetched()).isEqualTo(1);
    assertThat(to.resolve("f")).hasBinaryContent(bytes(9000));
  }

  @Test
  void blocksThatTheDiskLostAreFetchedAgainAndOnlyThose() throws Exception {
    var content = bytes(40 * 4096);
    server.add("f", content, true);
    var file = new HubFile("f", content.length, FakeHub.sha256(content));
    Files.createDirectories(to);
    try (var part = new PartFile(to.resolve("f"), file, 4096, 8)) {
      var range = part.claim(30, this);
      for (int block = range.first(); block <= range.last(); block++) {
        var buffer = part.buffer();
        System.arraycopy(content, block * 4096, buffer, 0, 4096);
        part.put(block, buffer);
      }
    }
    // what a power cut does: two journaled blocks never reached the disk, the journal's end is torn
    try (var data = new java.io.RandomAccessFile(to.resolve("f.part").toFile(), "rw");
        var journal = new java.io.RandomAccessFile(to.resolve("f.part.journal").toFile(), "rw")) {
      var line = new byte[8];
      journal.seek(journal.length() - 27);
      journal.readFully(line);
      int last = Integer.parseInt(new String(line), 16);
      journal.setLength(journal.length() - 5);
      for (int i = 3; i < 5; i++) {
        data.seek((last + i) % 30 * 4096L);
        data.write(new byte[4096]);
      }
    }
    download();
    assertThat(to.resolve("f")).hasBinaryContent(content);
    assertThat(server.bytesSent.get()).isEqualTo((40 - 30 + 2 + 1) * 4096);
  }

  @Test
  void aServerThatIgnoresRangesSendsTheFileOnceOrTwiceNotOftener() throws Exception {
    server.add("f", bytes(400_000), true);
    server.faults =
        new FakeHub.Faults() {
          @Override
          public FakeHub.Fault next(boolean content, String path) {
            return FakeHub.Fault.IGNORE_RANGE;
          }

          @Override
          public int at(int bound) {
            return 0;
          }
        };
    download();
    assertThat(to.resolve("f")).hasBinaryContent(bytes(400_000));
    assertThat(server.onSecond().size()).isLessThanOrEqualTo(SMALL.connections() + 2);
  }

  @Test
  void twoDownloadsOfOneFileDoNotMix() throws Exception {
    var file = new HubFile("f", 10, FakeHub.gitBlob(bytes(10)));
    server.add("f", bytes(10), false);
    Files.createDirectories(to);
    try (var part = new PartFile(to.resolve("f"), file, 4096, 8)) {
      assertThatThrownBy(this::download).hasMessageContaining("another download is writing");
    }
    download();
  }

  @Test
  void aFullDiskIsSaidBeforeAnythingIsFetched() throws Exception {
    server.add("f", bytes(50_000), true);
    var hub = new HubClient(settings());
    assertThatThrownBy(() -> new HubDownloader(hub, path -> 49_999).download(MODEL, List.of(), to))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("49999 bytes free")
        .hasMessageContaining("needs 50000 bytes more");
    assertThat(contentRequests()).isZero();
    new HubDownloader(hub, path -> 50_000).download(MODEL, List.of(), to);
  }

  @Test
  void closedRepositoriesSayWhatToDo() throws Exception {
    server.requiredToken = "another";
    server.errorCode = "GatedRepo";
    server.refusal = 403;
    assertThatThrownBy(this::download)
        .hasMessage(
            "the model org/repo is gated: accept its conditions at "
                + server.endpoint()
                + "/org/repo with the account your token belongs to, and see that the token may"
                + " read gated repositories");
    server.refusal = 401;
    server.errorCode = "RepoNotFound";
    assertThatThrownBy(this::download).hasMessageContaining("the Hub refuses the token");
    var s = settings();
    var anonymous =
        new HubSettings(
            s.endpoint(), Optional.empty(), s.cache(), s.timing(), s.layout(), Proxies.NONE);
    assertThatThrownBy(() -> download(anonymous))
        .hasMessageContaining("does not exist, is private or is gated")
        .hasMessageContaining("set HF_TOKEN");
    assertThat(server.requests).hasSize(3); // refusals are not retried
  }

  @Test
  void anInterruptEndsADownloadThatWaitsForItsServer() throws Exception {
    server.add("f", bytes(400_000), true);
    server.faults =
        new FakeHub.Faults() {
          @Override
          public FakeHub.Fault next(boolean content, String path) {
            return content ? FakeHub.Fault.STALL : FakeHub.Fault.NONE; // for five seconds
          }

          @Override
          public int at(int bound) {
            return bound / 2;
          }
        };
    var settings = Hubs.settings(server, folder.resolve("cache"), SMALL, Timing.DEFAULT);
    var failure = new java.util.concurrent.CompletableFuture<Throwable>();
    var thread =
        Thread.ofPlatform()
            .start(
                () -> {
                  try {
                    download(settings);
                    failure.complete(null);
                  } catch (Throwable e) {
                    failure.complete(e);
                  }
                });
    while (server.bytesSent.get() == 0) {
      Thread.sleep(5);
    }
    thread.interrupt();
    assertThat(failure.get(2, java.util.concurrent.TimeUnit.SECONDS))
        .isInstanceOf(InterruptedException.class);
  }

  @Test
  void retryAfterIsHonouredAndTooLongAWaitIsSaid() throws Exception {
    var times = new java.util.concurrent.ConcurrentLinkedQueue<Long>();
    try (var busy = new java.net.ServerSocket(0)) {
      Thread.ofVirtual()
          .start(
              () -> {
                while (true) {
                  try (var socket = busy.accept()) {
                    times.add(System.nanoTime());
                    var wait = times.size() == 1 ? "1" : "Tue, 01 Jan 2999 00:00:00 GMT";
                    socket.getInputStream().read(new byte[4096]);
                    socket
                        .getOutputStream()
                        .write(
                            ("HTTP/1.1 429 x\r\nContent-Length: 0\r\nConnection: close\r\n"
                                    + "Retry-After: "
                                    + wait
                                    + "\r\n\r\n")
                                .getBytes());
                  } catch (IOException e) {
                    return;
                  }
                }
              });
      var s = settings();
      var endpoint = java.net.URI.create("http://127.0.0.1:" + busy.getLocalPort());
      assertThatThrownBy(
              () ->
                  download(
                      new HubSettings(
                          endpoint, s.token(), s.cache(), s.timing(), s.layout(), Proxies.NONE)))
          .hasMessageContaining("asks to wait");
      var list = List.copyOf(times);
      assertThat(list).hasSize(2);
      assertThat(list.get(1) - list.get(0)).isGreaterThan(Duration.ofMillis(990).toNanos());
    }
  }

  @Test
  void thePythonClientsCacheIsUsedWhenItsBlobIsRight() throws Exception {
    server.add("f", bytes(50_000), true);
    server.add("g", bytes(60_000), true);
    var blobs = Files.createDirectories(folder.resolve("cache/models--org--repo/blobs"));
    Files.write(blobs.resolve(FakeHub.sha256(bytes(50_000))), bytes(50_000));
    Files.write(blobs.resolve(FakeHub.sha256(bytes(60_000))), new byte[60_000]);
    download();
    assertThat(to.resolve("f")).hasBinaryContent(bytes(50_000));
    assertThat(to.resolve("g")).hasBinaryContent(bytes(60_000));
    assertThat(server.bytesSent.get()).isEqualTo(60_000);
  }
}
