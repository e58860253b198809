package org.meteora.fuzz;

import java.io.BufferedInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HashSet;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import java.util.zip.CRC32C;
import org.meteora.data.hub.HubClient;
import org.meteora.data.hub.HubDownloader;
import org.meteora.data.hub.HubSettings;
import org.meteora.data.hub.Repository;
import org.meteora.data.hub.Timing;

/**
 * What a server and a proxy answer, as a text that can be mutated: parts that begin with {@code @@
 * KEY}, each the bytes of a reply to requests whose first line holds the key. It plays the proxy,
 * so that no request goes anywhere else, whatever a reply says.
 *
 * <p>In a reply {@code {LEN}} stands for the bytes that follow its head, {@code {FROM}}, {@code
 * {TO}} and {@code {PART}} for the range that was asked for of {@link #CONTENT}, {@code {N}} for
 * the number of the request.
 */
final class HttpScript implements AutoCloseable {
  static final String COMMIT = "0123456789abcdef0123456789abcdef01234567";
  private static final byte[] CONTENT =
      "0123456789abcdefghijklmnopqrstuvwxyz".repeat(10).getBytes(StandardCharsets.US_ASCII);
  private static final int BLOCK = 64;
  private static final Pattern RANGE = Pattern.compile("(?im)^range: bytes=(\\d+)-(\\d+)");
  private static final Timing TIMING =
      new Timing(
          Duration.ofMillis(500),
          Duration.ofMillis(100),
          Duration.ofMillis(1),
          Duration.ofMillis(2),
          Duration.ofMillis(5),
          2,
          Duration.ZERO);

  static final List<byte[]> SEEDS = List.of(seed(false), seed(true));

  private record Part(String key, String reply) {}

  private final List<Part> parts = new ArrayList<>();
  private final ServerSocket server;
  private final Set<Socket> open = ConcurrentHashMap.newKeySet();
  private final AtomicInteger requests = new AtomicInteger();

  private static byte[] seed(boolean chunked) {
    var listing = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {LEN}\r\n";
    var text = new StringBuilder();
    text.append("@@ /revision/\r\n").append(listing).append("ETag: W/\"1\"\r\n\r\n");
    text.append(
        "{\"sha\":\"" + COMMIT + "\",\"gated\":false,\"siblings\":[{\"rfilename\":\"a\"}]}");
    text.append("\r\n@@ /tree/\r\n").append(listing);
    text.append("Link: <https://hub.invalid/api/models/o/n/tree/" + COMMIT);
    text.append("?recursive=true&cursor=Y3Vy%3D>; rel=\"next\"\r\n\r\n");
    text.append("[{\"type\":\"directory\",\"path\":\"d\",\"size\":0},{\"type\":\"file\",");
    text.append(
        "\"path\":\"a.txt\",\"size\":5,\"oid\":\"" + hash("SHA-1", "blob 5\0hello") + "\"}]");
    text.append("\r\n@@ cursor=\r\n");
    if (chunked) {
      text.append("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
      var page = lastPage();
      text.append(Integer.toHexString(page.length())).append(";x=y\r\n").append(page);
      text.append("\r\n0\r\nTrailer: x\r\n\r\n");
    } else {
      text.append(listing).append("\r\n").append(lastPage());
    }
    text.append("\r\n@@ a.txt\r\n");
    text.append(
        chunked
            ? "HTTP/1.1 200 OK\r\n"
                + "Transfer-Encoding: chunked\r\n\r\n"
                + "2\r\n"
                + "he\r\n"
                + "3\r\n"
                + "llo\r\n"
                + "0\r\n\r\n"
            : "HTTP/1.1 200 OK\r\nContent-Length: {LEN}\r\nX-Linked-Size: 5\r\n\r\nhello");
    text.append("\r\n@@ b%20c.bin\r\nHTTP/1.1 302 Found\r\nX-Repo-Commit: " + COMMIT + "\r\n");
    text.append("Location: http://cdn.invalid/blob/b?x=1&Expires=9\r\nContent-Length: {LEN}\r\n");
    text.append("\r\nFound");
    text.append("\r\n@@ /blob/\r\nHTTP/1.1 206 Partial Content\r\nAccept-Ranges: bytes\r\n");
    text.append("Content-Range: bytes {FROM}-{TO}/" + CONTENT.length + "\r\n");
    text.append("Content-Length: {LEN}\r\nConnection: keep-alive\r\n\r\n{PART}");
    text.append("\r\n@@ CONNECT\r\nHTTP/1.1 200 Connection established\r\n\r\n");
    return text.toString().getBytes(StandardCharsets.ISO_8859_1);
  }

  private static String lastPage() {
    return "[{\"type\":\"file\",\"path\":\"d/b c.bin\",\"size\":"
        + CONTENT.length
        + ",\"oid\":\""
        + "f".repeat(40)
        + "\",\"lfs\":{\"oid\":\"sha256:"
        + hash("SHA-256", new String(CONTENT, StandardCharsets.US_ASCII))
        + "\",\"size\":"
        + CONTENT.length
        + ",\"pointerSize\":130}}]";
  }

  private static String hash(String algorithm, String content) {
    try {
      var bytes = content.getBytes(StandardCharsets.US_ASCII);
      return HexFormat.of().formatHex(MessageDigest.getInstance(algorithm).digest(bytes));
    } catch (NoSuchAlgorithmException e) {
      throw new AssertionError(e);
    }
  }

  private HttpScript(byte[] script) throws IOException {
    for (var part : new String(script, StandardCharsets.ISO_8859_1).split("(\r\n|^)@@ ")) {
      int line = part.indexOf("\r\n");
      if (line > 0) {
        parts.add(new Part(part.substring(0, line), part.substring(line + 2)));
      }
    }
    // the longer key says more
    parts.sort(Comparator.comparingInt(part -> -part.key.length()));
    server = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());
    Thread.ofVirtual().start(this::accept);
  }

  /** Lists a repository and fetches its files from this script, into a folder of its own. */
  static void download(byte[] script, Path folder) throws IOException {
    var before = names(folder);
    try {
      fetch(script, folder);
    } finally {
      Fuzz.delete(folder.resolve("out"));
      var after = names(folder);
      if (!after.equals(before)) {
        throw new IllegalStateException("written beside the folder: " + after);
      }
    }
  }

  private static void fetch(byte[] script, Path folder) throws IOException {
    try (var http = new HttpScript(script)) {
      var environment =
          HubSettings.fromEnvironment(
              Map.of(
                  "HF_ENDPOINT",
                  "http://hub.invalid",
                  "HF_TOKEN",
                  "hf_x",
                  "all_proxy",
                  "http://127.0.0.1:" + http.server.getLocalPort()),
              folder);
      var settings =
          new HubSettings(
              environment.endpoint(),
              environment.token(),
              folder.resolve("cache"),
              TIMING,
              new HubSettings.Layout(2, BLOCK, 2 * BLOCK),
              environment.proxies());
      new HubDownloader(new HubClient(settings))
          .download(
              new Repository(Repository.Type.MODEL, "o/n", "main"),
              List.of(),
              folder.resolve("out"));
    } catch (InterruptedException e) {
      throw new IllegalStateException(e);
    }
  }

  /** A journal that says that all blocks are there. */
  static byte[] journal() {
    var hash = hash("SHA-256", new String(CONTENT, StandardCharsets.US_ASCII));
    var text = new StringBuilder("meteora-download 1 360 " + BLOCK + " " + hash + "\n");
    for (int block = 0; block * BLOCK < CONTENT.length; block++) {
      int from = block * BLOCK;
      int length = Math.min(BLOCK, CONTENT.length - from);
      var line = "%08x %08x".formatted(block, crc(CONTENT, from, length));
      var bytes = line.getBytes(StandardCharsets.US_ASCII);
      text.append(line).append(" %08x\n".formatted(crc(bytes, 0, bytes.length)));
    }
    return text.toString().getBytes(StandardCharsets.US_ASCII);
  }

  private static int crc(byte[] bytes, int from, int length) {
    var crc = new CRC32C();
    crc.update(bytes, from, length);
    return (int) crc.getValue();
  }

  /** Goes on with a download that has this journal: its file is right in the end. */
  static void goOn(Path journal, Path folder) throws IOException {
    var part = folder.resolve("out/d/b c.bin.part");
    Files.createDirectories(part.getParent());
    Files.write(part, CONTENT);
    Files.copy(journal, part.resolveSibling(part.getFileName() + ".journal"));
    try {
      fetch(SEEDS.getFirst(), folder);
      if (!Arrays.equals(Files.readAllBytes(folder.resolve("out/d/b c.bin")), CONTENT)) {
        throw new IllegalStateException("the file is wrong");
      }
    } finally {
      Fuzz.delete(folder.resolve("out"));
    }
  }

  private static Set<String> names(Path folder) throws IOException {
    try (Stream<Path> all = Files.walk(folder)) {
      return new HashSet<>(all.map(path -> folder.relativize(path).toString()).toList());
    }
  }

  private void accept() {
    while (!server.isClosed()) {
      try {
        var socket = server.accept();
        open.add(socket);
        Thread.ofVirtual().start(() -> serve(socket));
      } catch (IOException e) {
        return;
      }
    }
  }

  private void serve(Socket socket) {
    try (socket) {
      var in = new BufferedInputStream(socket.getInputStream());
      for (String head; (head = head(in)) != null; ) {
        var first = head.lines().findFirst().orElse("");
        var reply =
            parts.stream()
                .filter(part -> first.contains(part.key))
                .findFirst()
                .map(Part::reply)
                .orElse("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        socket.getOutputStream().write(filled(reply, head).getBytes(StandardCharsets.ISO_8859_1));
        socket.getOutputStream().flush();
        socket.setSoTimeout(30); // whoever waits for more than there is need not wait long
      }
    } catch (IOException e) {
      // the client has gone, or waits for what will not come
    } finally {
      open.remove(socket);
    }
  }

  private String filled(String reply, String head) {
    var range = RANGE.matcher(head);
    int from = 0;
    int to = CONTENT.length - 1;
    if (range.find()) {
      from = Math.min(CONTENT.length, Integer.parseInt(range.group(1)));
      to = Math.clamp(Long.parseLong(range.group(2)), from, CONTENT.length - 1);
    }
    var part = new String(CONTENT, from, Math.max(0, to + 1 - from), StandardCharsets.ISO_8859_1);
    var text =
        reply
            .replace("{FROM}", String.valueOf(from))
            .replace("{TO}", String.valueOf(to))
            .replace("{N}", String.valueOf(requests.incrementAndGet()))
            .replace("{PART}", part);
    int body = text.indexOf("\r\n\r\n");
    return text.replace("{LEN}", String.valueOf(body < 0 ? 0 : text.length() - body - 4));
  }

  private static String head(InputStream in) throws IOException {
    var bytes = new ByteArrayOutputStream();
    while (!bytes.toString(StandardCharsets.ISO_8859_1).endsWith("\r\n\r\n")) {
      int b = in.read();
      if (b < 0) {
        return null;
      }
      bytes.write(b);
    }
    return bytes.toString(StandardCharsets.ISO_8859_1);
  }

  @Override
  public void close() throws IOException {
    server.close();
    for (var socket : open) {
      socket.close();
    }
  }
}
