package org.meteora.data.hub;

import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.BufferedInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.URI;
import java.net.URLDecoder;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.atomic.AtomicLong;
import org.meteora.io.Jsonl;

/**
 * A server that speaks the Hub's protocol on raw sockets, so that it can also break it: the API and
 * small files on one port, big files behind a redirect on another.
 */
final class FakeHub implements AutoCloseable {
  static final String COMMIT = "0123456789abcdef0123456789abcdef01234567";

  /** What goes wrong with one reply. */
  enum Fault {
    NONE,
    RESET,
    DROP,
    TRUNCATE,
    CORRUPT,
    STALL,
    BUSY_429,
    BUSY_503,
    IGNORE_RANGE,
    WRONG_RANGE,
    TOO_LONG,
    EXPIRED,
    GARBAGE
  }

  /** Decides what goes wrong with a request. */
  interface Faults {
    Fault next(boolean content, String path);

    /** A number below {@code bound}: where it goes wrong. */
    int at(int bound);
  }

  static final Faults NO_FAULTS =
      new Faults() {
        @Override
        public Fault next(boolean content, String path) {
          return Fault.NONE;
        }

        @Override
        public int at(int bound) {
          return 0;
        }
      };

  /** A request as it came in. */
  record Request(boolean second, String path, Map<String, String> headers) {}

  record Entry(String path, byte[] content, boolean lfs, String hash) {}

  final Map<String, Entry> files = new LinkedHashMap<>();
  final ConcurrentLinkedQueue<Request> requests = new ConcurrentLinkedQueue<>();
  final AtomicLong bytesSent = new AtomicLong();
  final Map<String, AtomicLong> tries = new ConcurrentHashMap<>();
  volatile Faults faults = NO_FAULTS;
  volatile boolean redirects = true;

  /** Files are named {@code org/name/path}, and each repository has its own. */
  volatile boolean byRepository;

  volatile int pageSize = 1000;
  volatile int microsPer64k;
  volatile String requiredToken = "";
  volatile String errorCode = "";
  volatile int refusal = 401;
  private final ServerSocket first;
  private final ServerSocket second;

  FakeHub() throws IOException {
    first = new ServerSocket(0, 200, InetAddress.getLoopbackAddress());
    second = new ServerSocket(0, 200, InetAddress.getLoopbackAddress());
    Thread.ofVirtual().start(() -> accept(first, false));
    Thread.ofVirtual().start(() -> accept(second, true));
  }

  URI endpoint() {
    return URI.create("http://127.0.0.1:" + first.getLocalPort());
  }

  /** Adds a file; {@code lfs} ones carry a SHA-256 and are served from the second port. */
  void add(String path, byte[] content, boolean lfs) {
    files.put(path, new Entry(path, content, lfs, lfs ? sha256(content) : gitBlob(content)));
  }

  /** Adds a file whose hash in the listing is not its content's. */
  void addWithHash(String path, byte[] content, String hash) {
    files.put(path, new Entry(path, content, hash.length() == 64, hash));
  }

  static String sha256(byte[] content) {
    return digest("SHA-256", new byte[0], content);
  }

  static String gitBlob(byte[] content) {
    return digest("SHA-1", ("blob " + content.length + "\0").getBytes(), content);
  }

  private static String digest(String algorithm, byte[] before, byte[] content) {
    try {
      var digest = MessageDigest.getInstance(algorithm);
      digest.update(before);
      return HexFormat.of().formatHex(digest.digest(content));
    } catch (java.security.NoSuchAlgorithmException e) {
      throw new AssertionError(e);
    }
  }

  private void accept(ServerSocket server, boolean isSecond) {
    while (!server.isClosed()) {
      try {
        var socket = server.accept();
        Thread.ofVirtual().start(() -> serve(socket, isSecond));
      } catch (IOException e) {
        return;
      }
    }
  }

  private void serve(Socket socket, boolean isSecond) {
    try (socket) {
      var in = new BufferedInputStream(socket.getInputStream());
      while (true) {
        var line = line(in);
        if (line == null) {
          return;
        }
        var headers = new HashMap<String, String>();
        for (String header; (header = line(in)) != null && !header.isEmpty(); ) {
          int colon = header.indexOf(':');
          headers.put(
              header.substring(0, colon).toLowerCase(), header.substring(colon + 1).strip());
        }
        var path = line.split(" ")[1];
        requests.add(new Request(isSecond, path, headers));
        if (!answer(socket, isSecond, path, headers)) {
          return;
        }
      }
    } catch (IOException | InterruptedException e) {
      // the client went away
    }
  }

  private static String line(InputStream in) throws IOException {
    var bytes = new ByteArrayOutputStream();
    for (int b; (b = in.read()) != '\n'; ) {
      if (b < 0) {
        return null;
      }
      bytes.write(b);
    }
    return bytes.toString(StandardCharsets.ISO_8859_1).strip();
  }

  private boolean answer(Socket socket, boolean isSecond, String path, Map<String, String> headers)
      throws IOException, InterruptedException {
    var out = socket.getOutputStream();
    boolean content = path.contains("/resolve/") || path.startsWith("/blob/");
    var fault = faults.next(content, path);
    switch (fault) {
      case RESET -> {
        socket.setSoLinger(true, 0);
        return false;
      }
      case BUSY_429 -> {
        head(out, 429, 0, faults.at(2) == 0 ? "Retry-After: 0" : "X-Nothing: 0");
        return true;
      }
      case BUSY_503 -> {
        head(out, 503, 0);
        return true;
      }
      default -> {}
    }
    if (!isSecond
        && !requiredToken.isEmpty()
        && !("Bearer " + requiredToken).equals(headers.get("authorization"))) {
      head(out, refusal, 0, "X-Error-Code: " + errorCode, "X-Error-Message: closed");
      return true;
    }
    if (path.contains("/revision/")) {
      body(socket, fault, ("{\"sha\":\"" + COMMIT + "\",\"gated\":false}").getBytes());
      return fault != Fault.DROP;
    }
    if (path.contains("/tree/")) {
      return tree(socket, fault, path);
    }
    if (!content) {
      head(out, 404, 0, "X-Error-Code: RepoNotFound");
      return true;
    }
    var name =
        URLDecoder.decode(
            path.startsWith("/blob/")
                ? path.substring(6)
                : path.replaceAll("^/(datasets/)?(.*)/resolve/[^/]*/", byRepository ? "$2/" : ""),
            StandardCharsets.UTF_8);
    var entry = files.get(name);
    if (entry == null) {
      head(out, 404, 0, "X-Error-Code: EntryNotFound");
      return true;
    }
    if (!isSecond && entry.lfs && redirects) {
      head(
          out,
          302,
          0,
          "Location: http://127.0.0.1:"
              + second.getLocalPort()
              + "/blob/"
              + java.net.URLEncoder.encode(name, StandardCharsets.UTF_8));
      return true;
    }
    if (fault == Fault.EXPIRED && isSecond) {
      head(out, 403, 0);
      return true;
    }
    return content(socket, fault, entry, headers.get("range"));
  }

  private boolean content(Socket socket, Fault fault, Entry entry, String range)
      throws IOException, InterruptedException {
    var out = socket.getOutputStream();
    int size = entry.content.length;
    int from = 0;
    int to = size;
    boolean partial = range != null && fault != Fault.IGNORE_RANGE && size > 0;
    if (partial) {
      var parts = range.substring("bytes=".length()).split("-");
      from = Integer.parseInt(parts[0]);
      to = Math.min(size, Integer.parseInt(parts[1]) + 1);
    }
    var bytes = java.util.Arrays.copyOfRange(entry.content, from, to);
    int declared = bytes.length;
    int sent = bytes.length;
    switch (fault) {
      case DROP, STALL -> sent = faults.at(bytes.length + 1);
      case TRUNCATE -> sent = declared = faults.at(bytes.length + 1);
      case CORRUPT -> {
        if (bytes.length > 0) {
          bytes[faults.at(bytes.length)] ^= 1;
        }
      }
      case TOO_LONG -> {
        bytes = java.util.Arrays.copyOf(bytes, bytes.length + 10);
        sent = declared = bytes.length;
      }
      default -> {}
    }
    int shift = fault == Fault.WRONG_RANGE ? 1 : 0;
    if (partial) {
      head(
          out,
          206,
          declared,
          "Content-Range: bytes " + (from + shift) + "-" + (to - 1 + shift) + "/" + size);
    } else {
      head(out, 200, declared);
    }
    for (int at = 0; at < sent; at += 65536) {
      int n = Math.min(65536, sent - at);
      out.write(bytes, at, n);
      bytesSent.addAndGet(n);
      if (microsPer64k > 0) {
        Thread.sleep(microsPer64k / 1000, microsPer64k % 1000 * 1000);
      }
    }
    if (fault == Fault.STALL && sent < declared) {
      socket.setSoTimeout(5000);
      socket.getInputStream().read(); // until the client has had enough
    }
    return sent == declared;
  }

  private boolean tree(Socket socket, Fault fault, String path) throws IOException {
    int start =
        path.contains("cursor=") ? Integer.parseInt(path.replaceAll(".*cursor=(\\d+).*", "$1")) : 0;
    var list = Jsonl.JSON.createArrayNode();
    var prefix = byRepository ? path.replaceAll("^/api/(datasets|models)/(.*)/tree/.*", "$2/") : "";
    var entries =
        new ArrayList<>(files.values().stream().filter(e -> e.path.startsWith(prefix)).toList());
    int end = Math.min(entries.size(), start + pageSize);
    for (var entry : entries.subList(start, end)) {
      ObjectNode node = list.addObject();
      node.put("type", "file");
      node.put("path", entry.path.substring(prefix.length()));
      node.put("size", entry.content.length);
      node.put("oid", entry.lfs ? "f".repeat(40) : entry.hash);
      if (entry.lfs) {
        node.putObject("lfs").put("oid", entry.hash).put("size", entry.content.length);
      }
    }
    if (start == 0) {
      list.addObject().put("type", "directory").put("path", "somewhere").put("size", 0);
    }
    String[] link =
        end < entries.size()
            ? new String[] {
              "Link: <"
                  + endpoint()
                  + path.replaceAll("&cursor=.*", "")
                  + "&cursor="
                  + end
                  + ">; rel=\"next\""
            }
            : new String[0];
    body(socket, fault, Jsonl.JSON.writeValueAsBytes(list), link);
    return fault != Fault.DROP;
  }

  private void body(Socket socket, Fault fault, byte[] json, String... headers) throws IOException {
    var out = socket.getOutputStream();
    if (fault == Fault.GARBAGE || fault == Fault.TRUNCATE) {
      json = java.util.Arrays.copyOf(json, json.length / 2);
    }
    head(out, 200, json.length, headers);
    out.write(json, 0, fault == Fault.DROP ? faults.at(json.length) : json.length);
  }

  private static void head(OutputStream out, int status, long length, String... headers)
      throws IOException {
    var text = new StringBuilder("HTTP/1.1 " + status + " x\r\nContent-Length: " + length + "\r\n");
    for (var header : headers) {
      text.append(header).append("\r\n");
    }
    out.write(text.append("\r\n").toString().getBytes(StandardCharsets.ISO_8859_1));
  }

  List<Request> onSecond() {
    return requests.stream().filter(Request::second).toList();
  }

  @Override
  public void close() throws IOException {
    first.close();
    second.close();
  }
}
