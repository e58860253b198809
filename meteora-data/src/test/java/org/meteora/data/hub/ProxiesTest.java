package org.meteora.data.hub;

import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.net.InetAddress;
import java.net.Proxy;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.util.ArrayList;
import java.util.Base64;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import javax.net.ssl.HttpsURLConnection;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManagerFactory;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.UserException;

class ProxiesTest {
  @TempDir Path folder;

  private static Proxies of(String... variables) {
    var environment = new java.util.HashMap<String, String>();
    for (int i = 0; i < variables.length; i += 2) {
      environment.put(variables[i], variables[i + 1]);
    }
    return Proxies.fromEnvironment(environment);
  }

  private static String via(Proxies proxies, String address) {
    return proxies.of(URI.create(address)).map(Proxies.Via::name).orElse("direct");
  }

  @Test
  void theVariableOfTheAddressesSchemeCounts() {
    var both = of("http_proxy", "http://a:3128", "HTTPS_PROXY", "b:8080");
    assertThat(via(both, "http://x/")).isEqualTo("a:3128");
    assertThat(via(both, "https://x/")).isEqualTo("b:8080");
    var all = of("all_proxy", "socks5h://s", "https_proxy", "");
    assertThat(via(all, "http://x/")).isEqualTo("s:1080");
    assertThat(via(all, "https://x/")).as("set to nothing").isEqualTo("direct");
    assertThat(all.of(URI.create("http://x/")).orElseThrow().proxy().type())
        .isEqualTo(Proxy.Type.SOCKS);
    assertThat(via(of("http_proxy", "a", "HTTP_PROXY", "b"), "http://x/")).isEqualTo("a:80");
    assertThat(via(of("HTTP_PROXY", "a", "REQUEST_METHOD", "GET"), "http://x/"))
        .isEqualTo("direct");
    assertThat(via(Proxies.NONE, "https://x/")).isEqualTo("direct");
  }

  @Test
  void hostsThatAreLeftOut() {
    var proxies =
        of(
            "all_proxy",
            "p:1",
            "no_proxy",
            "localhost,"
                + " .example.org,*.wild.net,only.net:8443,10.0.0.0/8,192.168.1.7,fd00::/8,[::1]:80");
    for (var direct :
        List.of(
            "http://localhost:90/",
            "https://example.org/",
            "https://a.b.Example.org/",
            "https://x.wild.net/",
            "https://only.net:8443/",
            "http://10.200.3.4/",
            "http://192.168.1.7/",
            "http://[fd00::12]/",
            "http://[::1]/")) {
      assertThat(via(proxies, direct)).as(direct).isEqualTo("direct");
    }
    for (var through :
        List.of(
            "https://notexample.org/",
            "https://only.net/",
            "http://11.0.0.1/",
            "http://192.168.1.70/",
            "http://[fe00::1]/",
            "http://[::1]:81/",
            "https://localhost.evil.com/")) {
      assertThat(via(proxies, through)).as(through).isEqualTo("p:1");
    }
    assertThat(via(of("all_proxy", "p:1", "NO_PROXY", "*"), "https://x/")).isEqualTo("direct");
  }

  @Test
  void whatIsNotSupportedIsRefusedByName() {
    assertThatThrownBy(() -> of("https_proxy", "https://p:443"))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("https_proxy")
        .hasMessageContaining("https://");
    assertThatThrownBy(() -> of("ALL_PROXY", "socks4://p")).hasMessageContaining("socks4");
    assertThatThrownBy(() -> of("all_proxy", "socks5://me:secret@p"))
        .hasMessageContaining("SOCKS")
        .hasMessageNotContaining("secret");
    for (var bad : List.of("http://p:99999", "http://", "a b", "http://me:secret@p:x")) {
      assertThatThrownBy(() -> of("http_proxy", bad))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("http_proxy")
          .hasMessageNotContaining("secret");
    }
  }

  /** A server of one kind of conversation, a thread each; what it was asked is kept. */
  private static final class Server implements AutoCloseable {
    interface Talk {
      void with(Socket socket, List<String> heard) throws IOException;
    }

    final List<String> heard = Collections.synchronizedList(new ArrayList<>());
    private final ServerSocket socket = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());

    Server(Talk talk) throws IOException {
      Thread.ofVirtual()
          .start(
              () -> {
                while (!socket.isClosed()) {
                  try {
                    var client = socket.accept();
                    Thread.ofVirtual()
                        .start(
                            () -> {
                              try (client) {
                                talk.with(client, heard);
                              } catch (IOException e) {
                                // the other side went
                              }
                            });
                  } catch (IOException e) {
                    // closed
                  }
                }
              });
    }

    int port() {
      return socket.getLocalPort();
    }

    @Override
    public void close() throws IOException {
      socket.close();
    }
  }

  private static String head(InputStream in) throws IOException {
    var text = new ByteArrayOutputStream();
    while (!text.toString(ISO_8859_1).endsWith("\r\n\r\n")) {
      int b = in.read();
      if (b < 0) {
        throw new IOException("gone");
      }
      text.write(b);
    }
    return text.toString(ISO_8859_1);
  }

  private static void say(Socket socket, String text) throws IOException {
    socket.getOutputStream().write(text.getBytes(ISO_8859_1));
    socket.getOutputStream().flush();
  }

  private static void join(Socket one, Socket other) throws IOException {
    Thread.ofVirtual()
        .start(
            () -> {
              try {
                other.getInputStream().transferTo(one.getOutputStream());
                one.shutdownOutput();
              } catch (IOException e) {
                // the other side went
              }
            });
    one.getInputStream().transferTo(other.getOutputStream());
  }

  private HubClient client(URI endpoint, String variable, String proxy) {
    return new HubClient(
        new HubSettings(
            endpoint,
            Optional.of("hf_secret"),
            folder,
            Hubs.FAST,
            HubSettings.Layout.DEFAULT,
            of(variable, proxy)));
  }

  private static final Repository REPOSITORY =
      new Repository(Repository.Type.MODEL, "org/name", "main");

  /** The Hub's host does not exist here: only the proxy knows where it is. */
  @Test
  void plainHttpThroughAProxyThatWantsALogin() throws Exception {
    var expected = "Basic " + Base64.getEncoder().encodeToString("me:s@crt".getBytes(ISO_8859_1));
    try (var hub = new FakeHub();
        var proxy =
            new Server(
                (client, heard) -> {
                  for (; ; ) {
                    var request = head(client.getInputStream());
                    heard.add(request.lines().findFirst().orElse(""));
                    if (!request.contains("roxy-authorization: " + expected)) {
                      say(
                          client,
                          "HTTP/1.1 407 Login\r\nProxy-Authenticate: Basic realm=\"x\"\r\n"
                              + "Content-Length: 0\r\n\r\n");
                      continue;
                    }
                    try (var server = new Socket("localhost", hub.endpoint().getPort())) {
                      say(
                          server,
                          request
                              .replaceFirst("http://hub.invalid", "")
                              .replaceFirst("(?i)Proxy-Connection: [^\r]*\r\n", "")
                              .replaceFirst("\r\n", "\r\nConnection: close\r\n"));
                      server.getInputStream().transferTo(client.getOutputStream());
                    }
                    return;
                  }
                })) {
      hub.add("a.txt", "hello".getBytes(ISO_8859_1), false);
      hub.redirects = false;
      var address = "http://me:s%40crt@localhost:" + proxy.port();
      var files = client(URI.create("http://hub.invalid"), "http_proxy", address).list(REPOSITORY);
      assertThat(files.files()).extracting(HubFile::path).containsExactly("a.txt");
      assertThat(proxy.heard).anyMatch(line -> line.startsWith("GET http://hub.invalid/api/"));
      assertThatThrownBy(
              () ->
                  client(
                          URI.create("http://hub.invalid"),
                          "http_proxy",
                          "localhost:" + proxy.port())
                      .list(REPOSITORY))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("the proxy localhost:" + proxy.port())
          .hasMessageContaining("login");
    }
  }

  @Test
  void httpsAsksTheProxyForATunnel() throws Exception {
    try (var proxy =
        new Server(
            (client, heard) -> {
              heard.add(head(client.getInputStream()).lines().findFirst().orElse(""));
              say(client, "HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n");
            })) {
      assertThatThrownBy(
              () ->
                  client(
                          URI.create("https://hub.invalid"),
                          "https_proxy",
                          "http://localhost:" + proxy.port())
                      .list(REPOSITORY))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("403")
          .hasMessageContaining("through the proxy localhost:" + proxy.port());
      assertThat(proxy.heard).contains("CONNECT hub.invalid:443 HTTP/1.1");
    }
  }

  private SSLContext certified(String name) throws Exception {
    var store = folder.resolve(name + ".p12");
    var keytool =
        new ProcessBuilder(
                Path.of(System.getProperty("java.home"), "bin", "keytool").toString(),
                "-genkeypair",
                "-alias",
                "x",
                "-keyalg",
                "EC",
                "-dname",
                "CN=" + name,
                "-ext",
                "san=dns:" + name,
                "-storetype",
                "PKCS12",
                "-storepass",
                "secret",
                "-keystore",
                store.toString())
            .redirectErrorStream(true)
            .start();
    var said = new String(keytool.getInputStream().readAllBytes(), ISO_8859_1);
    assertThat(keytool.waitFor()).as(said).isZero();
    var keys = KeyStore.getInstance("PKCS12");
    try (var in = Files.newInputStream(store)) {
      keys.load(in, "secret".toCharArray());
    }
    var own = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
    own.init(keys, "secret".toCharArray());
    var trusted = KeyStore.getInstance("PKCS12");
    trusted.load(null, null);
    trusted.setCertificateEntry("x", keys.getCertificate("x"));
    var trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
    trust.init(trusted);
    var context = SSLContext.getInstance("TLS");
    context.init(own.getKeyManagers(), trust.getTrustManagers(), null);
    return context;
  }

  /** A tunnel that the proxy opens: what goes through it is the server's alone to read. */
  @Test
  void httpsGoesThroughTheTunnel() throws Exception {
    var context = certified("hub.invalid");
    var before = HttpsURLConnection.getDefaultSSLSocketFactory();
    try (var hub = new FakeHub();
        var tls =
            new Server(
                (client, heard) -> {
                  try (var secret =
                          (SSLSocket)
                              context
                                  .getSocketFactory()
                                  .createSocket(client, null, client.getPort(), true);
                      var plain = new Socket("localhost", hub.endpoint().getPort())) {
                    secret.setUseClientMode(false);
                    join(secret, plain);
                  }
                });
        var proxy =
            new Server(
                (client, heard) -> {
                  heard.add(head(client.getInputStream()));
                  say(client, "HTTP/1.1 200 Connection established\r\n\r\n");
                  try (var server = new Socket("localhost", tls.port())) {
                    join(client, server);
                  }
                })) {
      hub.add("a.txt", "hello".getBytes(ISO_8859_1), false);
      hub.redirects = false;
      hub.requiredToken = "hf_secret";
      var hubClient =
          client(URI.create("https://hub.invalid"), "https_proxy", "localhost:" + proxy.port());
      assertThatThrownBy(() -> hubClient.list(REPOSITORY))
          .as("a certificate that nobody here has signed")
          .isInstanceOf(UserException.class)
          .hasMessageContaining("hub.invalid")
          .hasMessageContaining("certif")
          .hasMessageNotContaining("\n");
      HttpsURLConnection.setDefaultSSLSocketFactory(context.getSocketFactory());
      var to = folder.resolve("to");
      new HubDownloader(hubClient).download(REPOSITORY, List.of(), to);
      assertThat(to.resolve("a.txt")).hasContent("hello");
      assertThat(proxy.heard)
          .allMatch(head -> head.startsWith("CONNECT hub.invalid:443 HTTP/1.1\r\n"))
          .noneMatch(head -> head.contains("hf_secret"));
    } finally {
      HttpsURLConnection.setDefaultSSLSocketFactory(before);
    }
  }

  @Test
  void socksIsAskedForTheHostByName() throws Exception {
    try (var hub = new FakeHub();
        var proxy =
            new Server(
                (client, heard) -> {
                  var in = client.getInputStream();
                  in.read(); // version 5
                  in.readNBytes(in.read());
                  client.getOutputStream().write(new byte[] {5, 0});
                  var request = in.readNBytes(4);
                  assertThat(request[3]).as("a name").isEqualTo((byte) 3);
                  heard.add(new String(in.readNBytes(in.read()), ISO_8859_1));
                  in.readNBytes(2);
                  client.getOutputStream().write(new byte[] {5, 0, 0, 1, 0, 0, 0, 0, 0, 0});
                  try (var server = new Socket("localhost", hub.endpoint().getPort())) {
                    join(client, server);
                  }
                })) {
      hub.add("a.txt", "hello".getBytes(ISO_8859_1), false);
      var files =
          client(
                  URI.create("http://hub.invalid"),
                  "all_proxy",
                  "socks5h://localhost:" + proxy.port())
              .list(REPOSITORY);
      assertThat(files.files()).hasSize(1);
      assertThat(proxy.heard).contains("hub.invalid");
    }
  }

  /** A server of canned replies, by the order of requests. */
  private static Server canned(String... replies) throws IOException {
    return new Server(
        (client, heard) -> {
          for (; ; ) {
            heard.add(head(client.getInputStream()).lines().findFirst().orElse(""));
            say(client, replies[Math.min(heard.size(), replies.length) - 1]);
          }
        });
  }

  private static String json(String headers, String body) {
    return "HTTP/1.1 200 OK\r\n" + headers + "Content-Length: " + body.length() + "\r\n\r\n" + body;
  }

  private static final String HEAD = json("", "{\"sha\":\"" + "0".repeat(40) + "\"}");

  private HubClient direct(Server server, String path) {
    return new HubClient(
        new HubSettings(
            URI.create("http://localhost:" + server.port() + path),
            Optional.empty(),
            folder,
            Hubs.FAST,
            HubSettings.Layout.DEFAULT,
            Proxies.NONE));
  }

  /** A mirror hands on the Hub's own links; the next page is asked of the mirror all the same. */
  @Test
  void theNextPageIsAskedAtTheEndpoint() throws Exception {
    for (var path : List.of("", "/mirror")) {
      for (var link :
          List.of(
              "https://huggingface.co/api/models/org/name/tree/x?recursive=true&cursor=a%3D",
              "http://localhost:99/api/models/org/name/tree/x?recursive=true&cursor=a%3D",
              "/api/models/org/name/tree/x?recursive=true&cursor=a%3D",
              "https://hub.invalid:99/m/api/models/org/name/tree/x?recursive=true&cursor=a%3D")) {
        try (var mirror =
            canned(HEAD, json("Link: <" + link + ">; rel=\"next\"\r\n", "[]"), json("", "[]"))) {
          assertThat(direct(mirror, path).list(REPOSITORY).files()).isEmpty();
          assertThat(mirror.heard.get(2))
              .isEqualTo(
                  "GET "
                      + path
                      + "/api/models/org/name/tree/x?recursive=true&cursor=a%3D HTTP/1.1");
        }
      }
    }
  }

  @Test
  void repliesThatNobodyCanFollow() throws Exception {
    for (var link :
        List.of(
            "file:///etc/passwd",
            "http://localhost:99999/api/x?y",
            "http://[",
            "jar:http://x!/a",
            "/other?x",
            "/api/models/org/name/tree/x")) {
      try (var server =
          canned(HEAD, json("Link: <" + link + ">; rel=\"next\"\r\n", "[]"), json("", "[]"))) {
        assertThatThrownBy(() -> direct(server, "").list(REPOSITORY))
            .as(link)
            .isInstanceOf(UserException.class)
            .hasMessageContaining("next page");
        assertThat(server.heard).hasSize(2);
      }
    }
    for (var lengths :
        List.of(
            "Content-Length: 2\r\nContent-Length: 3\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 2, 3\r\n")) {
      try (var server = canned("HTTP/1.1 200 OK\r\n" + lengths + "\r\n{}")) {
        assertThatThrownBy(() -> direct(server, "").list(REPOSITORY))
            .as(lengths)
            .isInstanceOf(UserException.class)
            .hasMessageContaining("Content-Length");
      }
    }
    for (var location : List.of("http://localhost:99999/", "file:/x", "ftp://x/", "http://[")) {
      try (var server =
          canned("HTTP/1.1 302 Found\r\nLocation: " + location + "\r\nContent-Length: 0\r\n\r\n")) {
        assertThatThrownBy(() -> direct(server, "").list(REPOSITORY))
            .as(location)
            .isInstanceOf(UserException.class)
            .hasMessageContaining("redirects to");
      }
    }
    assertThatThrownBy(
            () ->
                HubSettings.fromEnvironment(
                    Map.of("HF_ENDPOINT", "http://localhost:99999"), folder))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("HF_ENDPOINT");
  }

  /** Sizes that nobody has, and a listing that goes on for ever. */
  @Test
  void listingsWithoutMeasure() throws Exception {
    var file =
        "{\"type\":\"file\",\"path\":\"a\",\"size\":9223372036854775807,\"oid\":\"%s\"}"
            .formatted("0".repeat(40));
    try (var server = canned(HEAD, json("", "[" + file + "," + file + "]"))) {
      assertThatThrownBy(() -> direct(server, "").list(REPOSITORY))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("no size of \"a\"");
    }
    try (var server =
        new Server(
            (client, heard) -> {
              for (; ; ) {
                head(client.getInputStream());
                heard.add("");
                say(
                    client,
                    heard.size() == 1
                        ? HEAD
                        : json("Link: </api/x?cursor=" + heard.size() + ">; rel=next\r\n", "[]"));
              }
            })) {
      assertThatThrownBy(() -> direct(server, "").list(REPOSITORY))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("more than 10000 pages");
    }
  }
}
