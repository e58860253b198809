package org.meteora.data.hub;

import java.io.FilterInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.net.Authenticator;
import java.net.HttpURLConnection;
import java.net.PasswordAuthentication;
import java.net.URI;
import java.net.UnknownHostException;
import java.util.Arrays;
import java.util.Map;
import java.util.Optional;
import java.util.TreeMap;
import org.meteora.UserException;

/**
 * GET with what {@link HttpURLConnection} leaves to its user: redirects followed by hand (the token
 * goes to the endpoint alone), bodies that are broken off noticed.
 *
 * <p>It is this client because it reads the socket in the caller's thread: for a file that arrives
 * at a GiB/s the hand-overs of {@code java.net.http} cost more than all the rest. A thread that is
 * interrupted gets out of a read at once when it is a virtual one, else within the stall time.
 */
record Http(HubSettings settings) {
  private static final String TUNNEL_SCHEMES = "jdk.http.auth.tunneling.disabledSchemes";
  private static final int REDIRECTS = 10;

  static {
    // a proxy that asks for a name and a password gets them for https too
    if (System.getProperty(TUNNEL_SCHEMES) == null) {
      System.setProperty(TUNNEL_SCHEMES, "");
    }
  }

  /** What is read of an error page so that its connection can be used again. */
  private static final int ERROR_PAGE = 64 << 10;

  /** Looks at the head of a good reply (2xx) and reads its body to the end. */
  @FunctionalInterface
  interface OnReply {
    void read(Reply reply, InputStream body) throws IOException;
  }

  /**
   * A reply's head.
   *
   * @param address that it came from, after redirects
   */
  record Reply(URI address, int status, Map<String, String> headers) {
    /** All values of the header, with commas between them; the case of its name does not matter. */
    Optional<String> header(String name) {
      return Optional.ofNullable(headers.get(name));
    }
  }

  /**
   * Fetches {@code uri}, through redirects.
   *
   * @throws StatusException for a reply other than 2xx
   * @throws IOException for anything else that broke on the way, and what {@code onReply} threw
   */
  void get(URI uri, Map<String, String> headers, OnReply onReply)
      throws IOException, InterruptedException {
    var at = uri;
    for (int hop = 0; hop <= REDIRECTS; hop++) {
      var reply = exchange(at, headers, onReply);
      if (reply.status / 100 == 2) {
        return;
      }
      at =
          switch (reply.status) {
            case 301, 302, 303, 307, 308 -> redirect(at, reply);
            default -> throw new StatusException(reply, isEndpoint(at));
          };
    }
    throw new IOException(uri.getHost() + " redirects in a circle");
  }

  /** Same scheme, host and port as the endpoint: the one place the token may go. */
  boolean isEndpoint(URI uri) {
    var endpoint = settings.endpoint();
    return endpoint.getScheme().equalsIgnoreCase(uri.getScheme())
        && endpoint.getHost().equalsIgnoreCase(uri.getHost())
        && port(endpoint) == port(uri);
  }

  /** Where a link leads, or an address; empty unless it is http or https to a port of a host. */
  static Optional<URI> address(URI from, String link) {
    try {
      return Optional.of(from.resolve(link))
          .filter(to -> String.valueOf(to.getScheme()).matches("(?i)https?"))
          .filter(to -> to.getHost() != null && to.getPort() <= 65_535);
    } catch (IllegalArgumentException e) {
      return Optional.empty();
    }
  }

  static int port(URI uri) {
    return uri.getPort() >= 0
        ? uri.getPort()
        : "https".equalsIgnoreCase(uri.getScheme()) ? 443 : 80;
  }

  private static URI redirect(URI from, Reply reply) throws IOException {
    var location =
        reply
            .header("Location")
            .orElseThrow(() -> new IOException(from.getHost() + " redirects to nowhere"));
    var to =
        address(from, location)
            .orElseThrow(
                () -> new IOException(from.getHost() + " redirects to what is no http address"));
    if ("http".equalsIgnoreCase(to.getScheme()) && "https".equalsIgnoreCase(from.getScheme())) {
      throw new IOException(from.getHost() + " redirects from https to plain http: refused");
    }
    return to;
  }

  private Reply exchange(URI uri, Map<String, String> headers, OnReply onReply)
      throws IOException, InterruptedException {
    var timing = settings.timing();
    var via = settings.proxies().of(uri);
    var url = uri.toURL();
    var connection =
        (HttpURLConnection)
            (via.isPresent() ? url.openConnection(via.get().proxy()) : url.openConnection());
    via.flatMap(Proxies.Via::login)
        .ifPresent(login -> connection.setAuthenticator(forProxy(login)));
    connection.setInstanceFollowRedirects(false);
    connection.setConnectTimeout(Math.toIntExact(timing.connect().toMillis()));
    connection.setReadTimeout(Math.toIntExact(timing.stall().toMillis()));
    connection.setRequestProperty("User-Agent", "meteora/0.1");
    headers.forEach(connection::setRequestProperty);
    if (isEndpoint(uri)) {
      settings
          .token()
          .ifPresent(token -> connection.setRequestProperty("Authorization", "Bearer " + token));
    }
    boolean whole = false;
    try {
      var reply = head(uri, connection, via);
      if (reply.status / 100 == 2) {
        try (var body = new Body(connection)) {
          onReply.read(reply, body);
        }
        whole = true;
      } else {
        whole = skip(connection, reply.status);
      }
      return reply;
    } catch (IOException e) {
      if (Thread.interrupted()) {
        throw new InterruptedException();
      }
      throw e;
    } finally {
      if (!whole) { // else it is kept for the next request
        connection.disconnect();
      }
    }
  }

  private static Authenticator forProxy(PasswordAuthentication login) {
    return new Authenticator() {
      @Override
      protected PasswordAuthentication getPasswordAuthentication() {
        return getRequestorType() == RequestorType.PROXY ? login : null; // servers get none
      }
    };
  }

  private static Reply head(URI uri, HttpURLConnection connection, Optional<Proxies.Via> via)
      throws IOException {
    try {
      int status = connection.getResponseCode();
      if (status < 0) {
        throw new IOException("an answer that is not HTTP");
      }
      var headers = new TreeMap<String, String>(String.CASE_INSENSITIVE_ORDER);
      connection
          .getHeaderFields()
          .forEach(
              (name, values) -> {
                if (name != null) { // the status line has none
                  headers.merge(name, String.join(", ", values), (one, two) -> one + ", " + two);
                }
              });
      if (status == 407) {
        throw new IOException("Proxy returns 407");
      }
      requireOneLength(connection, headers);
      return new Reply(uri, status, headers);
    } catch (IOException e) {
      var failure = broken(connection, e);
      if (via.isEmpty()) {
        throw failure;
      }
      var proxy = via.get().name();
      if (String.valueOf(e.getMessage()).matches(".*Proxy returns.*407.*")) {
        throw new UserException(
            "the proxy %s refuses the login, or wants one: http://NAME:PASSWORD@HOST:PORT in the"
                + " variable that names it",
            proxy, e);
      }
      throw new IOException(failure.getMessage() + " (through the proxy " + proxy + ")", e);
    }
  }

  /** How long a body is must be said once, in one way: what lies after it would be another's. */
  private static void requireOneLength(HttpURLConnection connection, Map<String, String> headers) {
    var lengths = headers.get("Content-Length");
    if (lengths == null) {
      return;
    }
    var each = lengths.split("\\s*,\\s*");
    if (!each[0].matches("\\d{1,18}") || !Arrays.stream(each).allMatch(each[0]::equals)) {
      throw new UserException(
          "%s sends a reply whose length is not clear (Content-Length %s): refused"
              .formatted(connection.getURL().getHost(), lengths));
    }
    headers.put("Content-Length", each[0]);
  }

  /** Ends where the server said it would, and says whose connection is broken. */
  private static final class Body extends FilterInputStream {
    private final HttpURLConnection connection;
    private long missing;

    Body(HttpURLConnection connection) throws IOException {
      super(connection.getInputStream());
      this.connection = connection;
      missing = connection.getContentLengthLong(); // -1: until the server closes
    }

    @Override
    public int read(byte[] to, int from, int length) throws IOException {
      try {
        int n = in.read(to, from, length);
        if (n < 0 && missing > 0) {
          throw new IOException("the connection broke off");
        }
        missing -= Math.max(n, 0);
        return n;
      } catch (IOException e) {
        throw broken(connection, e);
      }
    }

    @Override
    public int read() throws IOException {
      var one = new byte[1];
      return read(one, 0, 1) < 0 ? -1 : one[0] & 255;
    }
  }

  private static IOException broken(HttpURLConnection connection, IOException e) {
    var reason = e instanceof UnknownHostException ? "no such host" : Retry.reason(e);
    return new IOException(connection.getURL().getHost() + ": " + reason, e);
  }

  /** Returns whether the body of an error or a redirect was short enough to be read to its end. */
  private static boolean skip(HttpURLConnection connection, int status) {
    try (var in = status < 400 ? connection.getInputStream() : connection.getErrorStream()) {
      return in == null || in.readNBytes(ERROR_PAGE).length < ERROR_PAGE;
    } catch (IOException e) {
      return false; // the status says more
    }
  }
}
