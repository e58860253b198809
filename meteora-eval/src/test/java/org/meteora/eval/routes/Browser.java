package org.meteora.eval.routes;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.regex.Pattern;
import org.meteora.io.Jsonl;

/** A headless Chromium behind chromedriver, spoken to in WebDriver's HTTP protocol. */
final class Browser implements AutoCloseable {
  private final Process driver;
  private final HttpClient http =
      HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
  private String base;

  private Browser(Process driver) {
    this.driver = driver;
  }

  /** The first of some programs that is on the path. */
  static Optional<Path> find(String... names) {
    for (var name : names) {
      for (var folder : System.getenv().getOrDefault("PATH", "").split(":")) {
        var file = Path.of(folder, name);
        if (Files.isExecutable(file)) {
          return Optional.of(file);
        }
      }
    }
    return Optional.empty();
  }

  static Browser start(Path chromedriver, Path chromium, Path profile) throws IOException {
    var process =
        new ProcessBuilder(chromedriver.toString(), "--port=0").redirectErrorStream(true).start();
    var browser = new Browser(process);
    try {
      var out = new BufferedReader(new InputStreamReader(process.getInputStream()));
      var port = Pattern.compile("started successfully on port (\\d+)");
      for (String line; (line = out.readLine()) != null; ) {
        var match = port.matcher(line);
        if (match.find()) {
          browser.base = "http://127.0.0.1:" + match.group(1);
          break;
        }
      }
      if (browser.base == null) {
        throw new IOException("chromedriver ended before it listened");
      }
      Thread.ofVirtual().start(() -> out.lines().forEach(line -> {}));
      var arguments =
          List.of(
              "--headless",
              "--no-sandbox",
              "--disable-gpu",
              "--disable-quic",
              "--disable-dev-shm-usage",
              "--no-first-run",
              "--disable-background-networking",
              "--disable-component-update",
              "--disable-sync",
              "--window-size=1280,900",
              "--user-data-dir=" + profile);
      var session =
          browser.call(
              "POST",
              "/session",
              Map.of(
                  "capabilities",
                  Map.of(
                      "alwaysMatch",
                      Map.of(
                          "goog:loggingPrefs",
                          Map.of("browser", "ALL"),
                          "goog:chromeOptions",
                          Map.of("binary", chromium.toString(), "args", arguments)))));
      browser.base += "/session/" + session.get("sessionId").textValue();
      return browser;
    } catch (IOException | RuntimeException e) {
      browser.close();
      throw e;
    }
  }

  private JsonNode call(String method, String path, Object body) throws IOException {
    var request =
        HttpRequest.newBuilder(URI.create(base + path))
            .timeout(Duration.ofSeconds(60))
            .header("Content-Type", "application/json")
            .method(
                method,
                body == null
                    ? HttpRequest.BodyPublishers.noBody()
                    : HttpRequest.BodyPublishers.ofString(Jsonl.JSON.writeValueAsString(body)))
            .build();
    try {
      var response = http.send(request, HttpResponse.BodyHandlers.ofString());
      var value = Jsonl.JSON.readTree(response.body()).get("value");
      if (response.statusCode() != 200) {
        throw new IOException(method + " " + path + ": " + value);
      }
      return value;
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new IOException(e);
    }
  }

  /** Opens a page and waits until it says that it is ready. */
  void open(Path page) throws IOException {
    call("POST", "/url", Map.of("url", page.toUri().toString()));
    var deadline = System.nanoTime() + Duration.ofSeconds(30).toNanos();
    while (!script("return document.documentElement.dataset.ready === 'true'").asBoolean()) {
      if (System.nanoTime() > deadline) {
        throw new IOException("the page is not ready after 30 s: " + log());
      }
    }
  }

  JsonNode script(String script, Object... arguments) throws IOException {
    return call("POST", "/execute/sync", Map.of("script", script, "args", arguments));
  }

  /** What the page wrote to its console, and its errors. */
  List<String> log() throws IOException {
    var lines = new ArrayList<String>();
    call("POST", "/se/log", Map.of("type", "browser"))
        .forEach(entry -> lines.add(entry.get("level") + ": " + entry.get("message")));
    return lines;
  }

  private String element(String css) throws IOException {
    return call("POST", "/element", Map.of("using", "css selector", "value", css))
        .properties()
        .iterator()
        .next()
        .getValue()
        .textValue();
  }

  void click(String css) throws IOException {
    call("POST", "/element/" + element(css) + "/click", Map.of());
  }

  /** Moves the mouse over the middle of an element. */
  void hover(String css) throws IOException {
    var origin = Map.of("element-6066-11e4-a52e-4f735466cecf", element(css));
    script("arguments[0].scrollIntoView({block: 'center'})", origin);
    var move = Map.of("type", "pointerMove", "duration", 0, "x", 0, "y", 0, "origin", origin);
    call(
        "POST",
        "/actions",
        Map.of(
            "actions",
            List.of(
                Map.of(
                    "type",
                    "pointer",
                    "id",
                    "mouse",
                    "parameters",
                    Map.of("pointerType", "mouse"),
                    "actions",
                    List.of(move)))));
  }

  /** Presses keys one after another; U+E000 codes are WebDriver's special keys. */
  void keys(String keys) throws IOException {
    var actions = new ArrayList<Map<String, String>>();
    keys.codePoints()
        .forEach(
            code -> {
              var key = Character.toString(code);
              actions.add(Map.of("type", "keyDown", "value", key));
              actions.add(Map.of("type", "keyUp", "value", key));
            });
    call(
        "POST",
        "/actions",
        Map.of("actions", List.of(Map.of("type", "key", "id", "keys", "actions", actions))));
  }

  /** Makes the page believe in a preferred colour scheme: light or dark. */
  void colourScheme(String scheme) throws IOException {
    call(
        "POST",
        "/goog/cdp/execute",
        Map.of(
            "cmd",
            "Emulation.setEmulatedMedia",
            "params",
            Map.of("features", List.of(Map.of("name", "prefers-color-scheme", "value", scheme)))));
  }

  byte[] screenshot() throws IOException {
    return Base64.getDecoder().decode(call("GET", "/screenshot", null).textValue());
  }

  @Override
  public void close() {
    try {
      if (base != null && base.contains("/session/")) {
        call("DELETE", "", null);
      }
    } catch (IOException e) {
      // the browser is gone already
    } finally {
      driver.descendants().forEach(ProcessHandle::destroyForcibly);
      driver.destroyForcibly();
    }
  }
}
