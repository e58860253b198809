package org.meteora.data.hub;

import java.io.IOException;
import java.net.URI;
import java.net.http.HttpHeaders;
import java.time.DateTimeException;
import java.time.Duration;
import java.time.Instant;
import java.time.ZonedDateTime;
import java.time.format.DateTimeFormatter;
import java.util.Optional;
import java.util.regex.Pattern;

/** A server's reply that is not the content asked for. */
final class StatusException extends IOException {
  private static final Pattern RATE_LIMIT = Pattern.compile("\\br=0\\b.*\\bt=(\\d{1,9})\\b");

  private final int status;
  private final transient HttpHeaders headers;
  private final boolean fromEndpoint;

  StatusException(URI uri, int status, HttpHeaders headers, boolean fromEndpoint) {
    super(uri.getHost() + " answered " + status + errorText(headers));
    this.status = status;
    this.headers = headers;
    this.fromEndpoint = fromEndpoint;
  }

  int status() {
    return status;
  }

  String code() {
    return headers.firstValue("X-Error-Code").orElse("");
  }

  /** Whether asking again may help: an overloaded server, or a signed address that has expired. */
  boolean mayPass() {
    return switch (status) {
      case 408, 425, 429, 500, 502, 503, 504 -> true;
      case 400, 401, 403, 404, 410 -> !fromEndpoint;
      default -> false;
    };
  }

  /** How long the server asks to be left alone. */
  Optional<Duration> retryAfter(Instant now) {
    var text = headers.firstValue("Retry-After").map(String::strip).orElse("");
    if (text.matches("\\d{1,9}")) {
      return Optional.of(Duration.ofSeconds(Long.parseLong(text)));
    }
    if (!text.isEmpty()) {
      try {
        var until = ZonedDateTime.parse(text, DateTimeFormatter.RFC_1123_DATE_TIME).toInstant();
        return Optional.of(until.isAfter(now) ? Duration.between(now, until) : Duration.ZERO);
      } catch (DateTimeException e) {
        return Optional.empty();
      }
    }
    var limit = RATE_LIMIT.matcher(headers.firstValue("RateLimit").orElse(""));
    return status == 429 && limit.find()
        ? Optional.of(Duration.ofSeconds(Long.parseLong(limit.group(1))))
        : Optional.empty();
  }

  private static String errorText(HttpHeaders headers) {
    return headers
        .firstValue("X-Error-Message")
        .map(text -> text.replaceAll("[^\\x20-\\x7e]", " ").strip())
        .filter(text -> !text.isEmpty())
        .map(text -> ": " + text.substring(0, Math.min(200, text.length())))
        .orElse("");
  }
}
