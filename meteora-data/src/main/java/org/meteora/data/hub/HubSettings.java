package org.meteora.data.hub;

import java.io.IOException;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.Optional;
import org.meteora.UserException;
import org.meteora.data.config.HubCache;
import org.meteora.io.AtomicFiles;
import org.meteora.io.CacheFolders;

/**
 * Where the Hub is and who asks, from the variables that users of the Python client know.
 *
 * @param endpoint {@code HF_ENDPOINT}, without a trailing slash; the public Hub when unset
 * @param token {@code HF_TOKEN}, or the content of {@code HF_TOKEN_PATH} ({@code HF_HOME/token})
 * @param cache {@code HF_HUB_CACHE} ({@code HF_HOME/hub}): files found there by hash are copied
 *     instead of fetched
 * @param timing how long to wait for what
 * @param layout how a file is cut
 * @param proxies that requests go through
 */
public record HubSettings(
    URI endpoint,
    Optional<String> token,
    Path cache,
    Timing timing,
    Layout layout,
    Proxies proxies) {
  /**
   * How a file is cut.
   *
   * @param connections at a time
   * @param blockBytes one entry of the journal: what a kill can cost at most for each connection
   * @param rangeBytes one request: a multiple of {@code blockBytes}
   */
  public record Layout(int connections, int blockBytes, int rangeBytes) {
    public static final Layout DEFAULT = new Layout(8, 1 << 20, 32 << 20);
  }

  /**
   * Reads the environment.
   *
   * @throws UserException for an endpoint that is not an http(s) address, a token that cannot be
   *     one, or {@code HF_HUB_OFFLINE} set
   */
  public static HubSettings fromEnvironment(Map<String, String> environment, Path userHome) {
    var offline = environment.getOrDefault("HF_HUB_OFFLINE", "");
    if (offline.matches("(?i)1|true|yes|on")) {
      throw new UserException("HF_HUB_OFFLINE=" + offline + " forbids downloads; unset it");
    }
    var endpointText = HubCache.value(environment, "HF_ENDPOINT").orElse("https://huggingface.co");
    var endpoint =
        Http.address(URI.create(""), endpointText.replaceAll("/+$", ""))
            .orElseThrow(
                () ->
                    new UserException(
                        "HF_ENDPOINT must be like https://huggingface.co, found: " + endpointText));
    var home = HubCache.home(environment, userHome);
    var tokenFile =
        HubCache.path(environment, "HF_TOKEN_PATH", userHome).orElse(home.resolve("token"));
    var token =
        HubCache.value(environment, "HF_TOKEN")
            .or(() -> HubCache.value(environment, "HUGGING_FACE_HUB_TOKEN"))
            .or(() -> read(tokenFile));
    if (token.isPresent() && !token.get().matches("[\\x21-\\x7e]+")) {
      throw new UserException(
          "the Hub token (HF_TOKEN or " + tokenFile + ") holds characters no token has");
    }
    return new HubSettings(
        endpoint,
        token,
        HubCache.of(environment, userHome),
        Timing.DEFAULT,
        Layout.DEFAULT,
        Proxies.fromEnvironment(environment));
  }

  /** The settings of this process. */
  public static HubSettings fromEnvironment() {
    return fromEnvironment(System.getenv(), CacheFolders.home().orElse(Path.of("/nonexistent")));
  }

  private static Optional<String> read(Path tokenFile) {
    if (!Files.isRegularFile(tokenFile)) {
      return Optional.empty();
    }
    try {
      return Optional.of(Files.readString(tokenFile).strip()).filter(text -> !text.isEmpty());
    } catch (IOException e) {
      throw new UserException(
          "cannot read the Hub token in " + tokenFile + ": " + AtomicFiles.reason(e), e);
    }
  }

  /** The token stays out of logs. */
  @Override
  public String toString() {
    return "HubSettings[" + endpoint + (token.isPresent() ? ", with a token]" : ", no token]");
  }
}
