package org.meteora.data.hub;

import java.io.IOException;
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

  private final transient Http.Reply reply;
  private final boolean fromEndpoint;

  StatusException(Http.Reply reply, boolean fromEndpoint) {
    super(reply.address().getHost() + " answered " + reply.status() + errorText(reply));
    this.reply = reply;
    this.fromEndpoint = fromEndpoint;
  }

  int status() {
    return reply.status();
  }

  String code() {
    return reply.header("X-Error-Code").orElse("");
  }

  /** Whether asking again may help: an overloaded server, or a signed address that has expired. */
  boolean mayPass() {
    return switch (reply.status()) {
      case 408, 425, 429, 500, 502, 503, 504 -> true;
      case 400, 401, 403, 404, 410 -> !fromEndpoint;
      default -> false;
    };
  }

  /** How long the server asks to be left alone. */
  Optional<Duration> retryAfter(Instant now) {
    var text = reply.header("Retry-After").map(String::strip).orElse("");
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
    var limit = RATE_LIMIT.matcher(reply.header("RateLimit").orElse(""));
    return reply.status() == 429 && limit.find()
        ? Optional.of(Duration.ofSeconds(Long.parseLong(limit.group(1))))
        : Optional.empty();
  }

  private static String errorText(Http.Reply reply) {
    return reply
        .header("X-Error-Message")
        .map(text -> text.replaceAll("[^\\x20-\\x7e]", " ").strip())
        .filter(text -> !text.isEmpty())
        .map(text -> ": " + text.substring(0, Math.min(200, text.length())))
        .orElse("");
  }
}
