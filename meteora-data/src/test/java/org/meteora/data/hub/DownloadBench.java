package org.meteora.data.hub;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.Channels;
import java.nio.channels.FileChannel;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Random;

/**
 * Throughput and memory of a download from a loopback server, next to curl's in the same run.
 *
 * <p>{@code DownloadBench [MiB=1024] [rounds=5] [folder=java.io.tmpdir] [client options…]}: the
 * server, curl and the downloader are processes of their own and take turns; printed are each
 * round's and the medians' MiB/s. A download's time is the call's, from the listing to the renamed
 * file, hash and fsync included; each client process downloads twice, the first time with a JVM
 * that has neither loaded nor compiled anything, the second time as later files of a repository
 * are. curl neither hashes nor syncs; {@code curl+sync} is curl followed by {@code sync FILE}. All
 * write to the same file system; a first round is not counted. Memory is the client process's peak
 * resident size, with a heap of 128 MiB.
 */
public final class DownloadBench {
  public static void main(String[] args) throws Exception {
    if (args.length > 0 && args[0].equals("serve")) {
      serve(Path.of(args[1]), args[2]);
    } else if (args.length > 0 && args[0].equals("fetch")) {
      fetch(args[1], Path.of(args[2]), Integer.parseInt(args[3]));
    } else {
      compare(args);
    }
  }

  private static void compare(String[] args) throws Exception {
    long bytes = (args.length > 0 ? Long.parseLong(args[0]) : 1024) << 20;
    int rounds = args.length > 1 ? Integer.parseInt(args[1]) : 5;
    var folder = Path.of(args.length > 2 ? args[2] : System.getProperty("java.io.tmpdir"));
    var options = args.length > 3 ? List.of(args).subList(3, args.length) : List.<String>of();
    var work = Files.createTempDirectory(folder, "meteora-bench");
    var source = work.resolve("source");
    var digest = java.security.MessageDigest.getInstance("SHA-256");
    try (var out = Files.newOutputStream(source)) {
      var random = new Random(1);
      var piece = new byte[1 << 20];
      for (long at = 0; at < bytes; at += piece.length) {
        random.nextBytes(piece);
        out.write(piece);
        digest.update(piece);
      }
    }
    var hash = HexFormat.of().formatHex(digest.digest());
    run("sync", source.toString());
    var server = java("-Xmx64m", List.of(), "serve", source.toString(), hash).start();
    var endpoint = new BufferedReader(new InputStreamReader(server.getInputStream())).readLine();
    try {
      var url = endpoint + "/org/repo/resolve/" + FakeHub.COMMIT + "/file.bin";
      var target = work.resolve("to");
      var curls = new ArrayList<Double>();
      var synced = new ArrayList<Double>();
      var ours = new ArrayList<Double>();
      var later = new ArrayList<Double>();
      for (int round = -1; round < rounds; round++) {
        var file = work.resolve("curl.out");
        long start = System.nanoTime();
        run("curl", "-s", "-L", "-o", file.toString(), url);
        double curl = seconds(start);
        run("sync", file.toString());
        double withSync = seconds(start);
        Files.delete(file);
        var client = java("-Xmx128m", options, "fetch", endpoint, target.toString(), "2").start();
        var results =
            new BufferedReader(new InputStreamReader(client.getInputStream()))
                .lines()
                .filter(line -> line.startsWith("result "))
                .map(line -> line.split(" "))
                .toList();
        if (client.waitFor() != 0 || results.size() != 2) {
          throw new IllegalStateException("the download failed");
        }
        double call = Double.parseDouble(results.get(0)[1]);
        double again = Double.parseDouble(results.get(1)[1]);
        System.out.printf(
            "curl %.2f s, curl+sync %.2f s, download %.2f s (cpu %s s), again %.2f s, peak %s"
                + " MiB%n",
            curl, withSync, call, results.get(0)[3], again, results.get(1)[2]);
        if (round >= 0) { // the first one, before memory and disk were used, does not count
          curls.add(bytes / 0x1p20 / curl);
          synced.add(bytes / 0x1p20 / withSync);
          ours.add(bytes / 0x1p20 / call);
          later.add(bytes / 0x1p20 / again);
        }
      }
      System.out.printf(
          "medians in MiB/s: curl %.0f, curl+sync %.0f%n", median(curls), median(synced));
      for (var each : List.of(ours, later)) {
        System.out.printf(
            "%s download in a process: %.0f, %.0f %% of curl, %.0f %% of curl+sync%n",
            each == ours ? "first" : "second",
            median(each),
            100 * median(each) / median(curls),
            100 * median(each) / median(synced));
      }
    } finally {
      server.destroyForcibly();
      try (var walk = Files.walk(work)) {
        for (var path : walk.sorted(java.util.Comparator.reverseOrder()).toList()) {
          Files.delete(path);
        }
      }
    }
  }

  private static double seconds(long start) {
    return (System.nanoTime() - start) / 1e9;
  }

  private static double median(List<Double> values) {
    return values.stream().sorted().toList().get(values.size() / 2);
  }

  private static void run(String... command) throws Exception {
    if (new ProcessBuilder(command).inheritIO().start().waitFor() != 0) {
      throw new IllegalStateException("failed: " + Arrays.toString(command));
    }
  }

  private static ProcessBuilder java(String heap, List<String> options, String... arguments) {
    var command = new ArrayList<String>();
    command.add(ProcessHandle.current().info().command().orElse("java"));
    command.add(heap);
    command.addAll(options);
    command.add("-cp");
    command.add(System.getProperty("java.class.path"));
    command.add(DownloadBench.class.getName());
    command.addAll(List.of(arguments));
    return new ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.DISCARD);
  }

  private static void fetch(String endpoint, Path to, int files) throws Exception {
    for (int i = 0; i < files; i++) {
      long start = System.nanoTime();
      var settings = HubSettings.fromEnvironment(Map.of("HF_ENDPOINT", endpoint), to);
      var hub = new HubClient(settings);
      new HubDownloader(hub)
          .download(new Repository(Repository.Type.MODEL, "org/repo", "main"), List.of(), to);
      double seconds = seconds(start);
      var peak =
          Files.readAllLines(Path.of("/proc/self/status")).stream()
              .filter(line -> line.startsWith("VmHWM"))
              .map(line -> Long.parseLong(line.replaceAll("\\D", "")) >> 10)
              .findFirst()
              .orElse(0L);
      var cpu = ProcessHandle.current().info().totalCpuDuration().orElseThrow().toMillis() / 1000.0;
      System.out.println("result " + seconds + " " + peak + " " + cpu);
      Files.delete(to.resolve("file.bin"));
    }
  }

  private static void serve(Path source, String hash) throws Exception {
    var server =
        ServerSocketChannel.open().bind(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0));
    System.out.println(
        "http://127.0.0.1:" + ((InetSocketAddress) server.getLocalAddress()).getPort());
    while (true) {
      var channel = server.accept();
      channel.setOption(java.net.StandardSocketOptions.TCP_NODELAY, true);
      Thread.ofPlatform().daemon().start(() -> answer(channel, source, hash));
    }
  }

  private static void answer(SocketChannel channel, Path source, String hash) {
    try (channel;
        var file = FileChannel.open(source, StandardOpenOption.READ)) {
      var in =
          new BufferedReader(
              new InputStreamReader(Channels.newInputStream(channel), StandardCharsets.ISO_8859_1));
      for (String request; (request = in.readLine()) != null; ) {
        long from = 0;
        long to = file.size();
        boolean partial = false;
        for (String header; !(header = in.readLine()).isEmpty(); ) {
          if (header.toLowerCase().startsWith("range: bytes=")) {
            var parts = header.substring("range: bytes=".length()).split("-");
            from = Long.parseLong(parts[0]);
            to = Long.parseLong(parts[1]) + 1;
            partial = true;
          }
        }
        if (request.contains("/resolve/")) {
          head(
              channel,
              partial
                  ? "206 x\r\nContent-Range: bytes " + from + "-" + (to - 1) + "/" + file.size()
                  : "200 x",
              to - from);
          while (from < to) {
            from += file.transferTo(from, to - from, channel);
          }
        } else {
          var json =
              request.contains("/revision/")
                  ? "{\"sha\":\"" + FakeHub.COMMIT + "\"}"
                  : "[{\"type\":\"file\",\"path\":\"file.bin\",\"size\":%d,\"lfs\":{\"oid\":\"%s\"}}]"
                      .formatted(file.size(), hash);
          head(channel, "200 x", json.length());
          channel.write(ByteBuffer.wrap(json.getBytes(StandardCharsets.US_ASCII)));
        }
      }
    } catch (IOException e) {
      // the client went away
    }
  }

  private static void head(SocketChannel channel, String status, long length) throws IOException {
    channel.write(
        ByteBuffer.wrap(
            ("HTTP/1.1 " + status + "\r\nContent-Length: " + length + "\r\n\r\n")
                .getBytes(StandardCharsets.ISO_8859_1)));
  }
}
