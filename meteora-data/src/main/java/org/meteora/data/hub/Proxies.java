package org.meteora.data.hub;

import java.math.BigInteger;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.PasswordAuthentication;
import java.net.Proxy;
import java.net.URI;
import java.net.URLDecoder;
import java.net.UnknownHostException;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.regex.Pattern;
import org.meteora.UserException;

/**
 * The proxy that a request goes through, from the variables that curl and Python follow: {@code
 * http_proxy}, {@code https_proxy} (by the scheme of the address that is asked for), {@code
 * all_proxy} where the other is not set, and {@code no_proxy}, each also in capitals.
 *
 * @param byScheme proxies of {@code http} and {@code https}
 * @param exceptions what {@code no_proxy} lists, in lower case
 */
record Proxies(Map<String, Via> byScheme, List<String> exceptions) {
  static final Proxies NONE = new Proxies(Map.of(), List.of());

  /**
   * A proxy.
   *
   * @param name host and port, for messages
   * @param login what it is told when it asks
   */
  record Via(Proxy proxy, String name, Optional<PasswordAuthentication> login) {}

  /**
   * Reads the environment.
   *
   * @throws UserException naming the variable whose value is no proxy's address, or a kind of proxy
   *     that is not supported
   */
  static Proxies fromEnvironment(Map<String, String> environment) {
    var found = new HashMap<String, Via>();
    for (var scheme : List.of("http", "https")) {
      value(environment, scheme + "_proxy")
          .or(() -> value(environment, "all_proxy"))
          .filter(variable -> !variable.getValue().isEmpty())
          .ifPresent(variable -> found.put(scheme, parse(variable.getKey(), variable.getValue())));
    }
    var exceptions =
        value(environment, "no_proxy").stream()
            .flatMap(variable -> Pattern.compile("[,\\s]+").splitAsStream(variable.getValue()))
            .filter(each -> !each.isEmpty())
            .map(each -> each.toLowerCase(Locale.ROOT))
            .toList();
    return new Proxies(Map.copyOf(found), exceptions);
  }

  /** The variable in small letters, else in capitals; set to nothing it is set. */
  private static Optional<Map.Entry<String, String>> value(
      Map<String, String> environment, String name) {
    for (var spelling : List.of(name, name.toUpperCase(Locale.ROOT))) {
      // a web server hands a client's "Proxy:" header to its programs as HTTP_PROXY
      boolean forged = spelling.equals("HTTP_PROXY") && environment.containsKey("REQUEST_METHOD");
      if (environment.get(spelling) != null && !forged) {
        return Optional.of(Map.entry(spelling, environment.get(spelling).strip()));
      }
    }
    return Optional.empty();
  }

  private static Via parse(String variable, String text) {
    URI uri = null;
    try {
      uri = URI.create(text.contains("://") ? text : "http://" + text);
    } catch (IllegalArgumentException e) {
      // refused below
    }
    if (uri == null || uri.getHost() == null || uri.getPort() > 65_535 || uri.getPort() == 0) {
      throw new UserException(variable + " is not the address of a proxy (http://HOST:PORT)");
    }
    var login = Optional.ofNullable(uri.getRawUserInfo()).map(Proxies::login);
    return switch (uri.getScheme().toLowerCase(Locale.ROOT)) {
      case "http" -> via(Proxy.Type.HTTP, uri, 80, login);
      case "socks", "socks5", "socks5h" -> {
        if (login.isPresent()) {
          throw new UserException(
              variable + ": a login at a SOCKS proxy is not supported; use an HTTP proxy");
        }
        yield via(Proxy.Type.SOCKS, uri, 1080, login);
      }
      default ->
          throw new UserException(
              "%s: proxies of the kind %s:// are not supported; http://, socks5:// and socks5h:// are"
                  .formatted(variable, uri.getScheme()));
    };
  }

  private static Via via(
      Proxy.Type type, URI uri, int defaultPort, Optional<PasswordAuthentication> login) {
    var host = uri.getHost().replaceAll("[\\[\\]]", "");
    int port = uri.getPort() < 0 ? defaultPort : uri.getPort();
    return new Via(new Proxy(type, new InetSocketAddress(host, port)), host + ":" + port, login);
  }

  private static PasswordAuthentication login(String userInfo) {
    int colon = userInfo.indexOf(':');
    var name = colon < 0 ? userInfo : userInfo.substring(0, colon);
    var password = colon < 0 ? "" : userInfo.substring(colon + 1);
    return new PasswordAuthentication(decode(name), decode(password).toCharArray());
  }

  private static String decode(String text) {
    return URLDecoder.decode(text.replace("+", "%2B"), StandardCharsets.UTF_8);
  }

  /** The proxy on the way to an address, if there is one. */
  Optional<Via> of(URI address) {
    var host = address.getHost().replaceAll("[\\[\\]]", "").toLowerCase(Locale.ROOT);
    return exceptions.stream().anyMatch(each -> matches(each, host, Http.port(address)))
        ? Optional.empty()
        : Optional.ofNullable(byScheme.get(address.getScheme().toLowerCase(Locale.ROOT)));
  }

  private static boolean matches(String exception, String host, int port) {
    if (exception.equals("*")) {
      return true;
    }
    if (exception.matches("[0-9a-f.:]+/\\d{1,3}")) {
      return inNetwork(exception, host);
    }
    var name = exception;
    if (name.matches("\\[.*](:\\d+)?|[^:]*:\\d+")) { // with a port
      int colon = name.lastIndexOf(':');
      if (colon > name.lastIndexOf(']')) {
        if (!name.substring(colon + 1).equals(String.valueOf(port))) {
          return false;
        }
        name = name.substring(0, colon);
      }
      name = name.replaceAll("[\\[\\]]", "");
    }
    name = name.replaceFirst("^\\*?\\.", "");
    return host.equals(name) || host.endsWith("." + name);
  }

  private static boolean inNetwork(String network, String host) {
    if (!host.matches("[0-9.]+|[0-9a-f.]*:[0-9a-f:.]+")) {
      return false; // a name: nobody asks a name server for this
    }
    try {
      var parts = network.split("/");
      var base = InetAddress.getByName(parts[0]).getAddress();
      var address = InetAddress.getByName(host).getAddress();
      int rest = base.length * 8 - Integer.parseInt(parts[1]);
      return base.length == address.length
          && rest >= 0
          && new BigInteger(1, base)
              .shiftRight(rest)
              .equals(new BigInteger(1, address).shiftRight(rest));
    } catch (UnknownHostException e) {
      return false;
    }
  }

  /** Logins stay out of logs. */
  @Override
  public String toString() {
    return "Proxies" + byScheme.values().stream().map(Via::name).toList();
  }
}
