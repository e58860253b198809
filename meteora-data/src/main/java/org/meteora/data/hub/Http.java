package org.meteora.data.hub;

import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpHeaders;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodySubscriber;
import java.nio.ByteBuffer;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Flow;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/**
 * One GET at a time for each thread, with what {@link HttpClient} leaves to its user: redirects
 * followed by hand (the token goes to the endpoint alone), stalled connections dropped, bodies
 * handed on piece by piece.
 */
final class Http implements AutoCloseable {
  private static final int REDIRECTS = 10;

  static {
    // the client reads sockets in pieces of 16 KiB by default, each a hand-over between threads
    if (System.getProperty("jdk.httpclient.bufsize") == null) {
      System.setProperty("jdk.httpclient.bufsize", String.valueOf(256 << 10));
    }
  }

  /** Takes a body's bytes in order. */
  @FunctionalInterface
  interface Sink {
    void accept(ByteBuffer data) throws IOException;
  }

  /** Looks at the head of a good reply (2xx) and says where its body goes. */
  @FunctionalInterface
  interface OnReply {
    Sink open(int status, HttpHeaders headers) throws IOException;
  }

  private final HubSettings settings;
  private final HttpClient client;

  Http(HubSettings settings) {
    this.settings = settings;
    client =
        HttpClient.newBuilder()
            // ranges in parallel need connections of their own, not streams of one
            .version(HttpClient.Version.HTTP_1_1)
            .followRedirects(HttpClient.Redirect.NEVER)
            .connectTimeout(settings.timing().connect())
            .build();
  }

  /**
   * Fetches {@code uri}, through redirects.
   *
   * @return the address that the content came from
   * @throws StatusException for a reply other than 2xx
   * @throws IOException for anything else that broke on the way, and what the sink threw
   */
  URI get(URI uri, Map<String, String> headers, OnReply onReply)
      throws IOException, InterruptedException {
    var at = uri;
    for (int hop = 0; hop <= REDIRECTS; hop++) {
      var request = HttpRequest.newBuilder(at).header("User-Agent", "meteora/0.1");
      headers.forEach(request::header);
      if (isEndpoint(at)) {
        settings.token().ifPresent(token -> request.header("Authorization", "Bearer " + token));
      }
      var reply = exchange(request.build(), onReply);
      if (reply.status / 100 == 2) {
        return at;
      }
      boolean redirect =
          switch (reply.status) {
            case 301, 302, 303, 307, 308 -> true;
            default -> false;
          };
      if (!redirect) {
        throw new StatusException(at, reply.status, reply.headers, isEndpoint(at));
      }
      at = redirect(at, reply);
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

  private static int port(URI uri) {
    return uri.getPort() >= 0
        ? uri.getPort()
        : "https".equalsIgnoreCase(uri.getScheme()) ? 443 : 80;
  }

  private static URI redirect(URI from, Reply reply) throws IOException {
    var location =
        reply
            .headers
            .firstValue("Location")
            .orElseThrow(() -> new IOException(from.getHost() + " redirects to nowhere"));
    URI to;
    try {
      to = from.resolve(location);
    } catch (IllegalArgumentException e) {
      throw new IOException(from.getHost() + " redirects to a broken address", e);
    }
    boolean http = "http".equalsIgnoreCase(to.getScheme());
    if (to.getHost() == null || !(http || "https".equalsIgnoreCase(to.getScheme()))) {
      throw new IOException(from.getHost() + " redirects to something that is not http");
    }
    if (http && "https".equalsIgnoreCase(from.getScheme())) {
      throw new IOException(from.getHost() + " redirects from https to plain http: refused");
    }
    return to;
  }

  private record Reply(int status, HttpHeaders headers) {}

  private Reply exchange(HttpRequest request, OnReply onReply)
      throws IOException, InterruptedException {
    var body = new Body();
    var future =
        client.sendAsync(
            request,
            info -> {
              body.touch();
              try {
                body.sink =
                    info.statusCode() / 100 == 2
                        ? onReply.open(info.statusCode(), info.headers())
                        : data -> {
                          if ((body.dropped += data.remaining()) > 64 << 10) {
                            throw new IOException("an endless error page");
                          }
                        };
              } catch (IOException | RuntimeException e) {
                body.refusal = e;
              }
              return body;
            });
    var stall = settings.timing().stall();
    boolean finished = false;
    try {
      while (true) {
        long left = stall.toNanos() - (System.nanoTime() - body.progress);
        if (left <= 0) {
          throw new IOException(
              request.uri().getHost() + " sent nothing for " + stall.toMillis() / 1000.0 + " s");
        }
        try {
          var response = future.get(left, TimeUnit.NANOSECONDS);
          finished = true;
          return new Reply(response.statusCode(), response.headers());
        } catch (TimeoutException e) {
          // look again whether something arrived meanwhile
        }
      }
    } catch (ExecutionException e) {
      if (body.refusal instanceof IOException io) {
        throw io;
      }
      if (body.refusal instanceof RuntimeException runtime) {
        throw runtime;
      }
      var cause = e.getCause();
      throw new IOException(
          request.uri().getHost()
              + ": "
              + (cause instanceof java.net.ConnectException
                  ? "no connection"
                  : Retry.reason(cause)),
          cause);
    } finally {
      if (!finished) {
        body.close();
        future.cancel(true);
      }
    }
  }

  /** A body on its way into a sink; nothing reaches the sink once it is closed. */
  private static final class Body implements BodySubscriber<Void> {
    private final CompletableFuture<Void> result = new CompletableFuture<>();
    private volatile long progress = System.nanoTime();
    private volatile Exception refusal;
    private volatile Sink sink;
    private volatile Flow.Subscription subscription;
    private boolean closed;
    private long dropped;

    void touch() {
      progress = System.nanoTime();
    }

    @Override
    public CompletionStage<Void> getBody() {
      return result;
    }

    @Override
    public void onSubscribe(Flow.Subscription subscription) {
      this.subscription = subscription;
      if (refusal != null) {
        subscription.cancel();
        result.completeExceptionally(refusal);
      } else {
        subscription.request(1);
      }
    }

    @Override
    public void onNext(List<ByteBuffer> pieces) {
      touch();
      try {
        synchronized (this) {
          for (var piece : pieces) {
            if (closed) {
              return;
            }
            sink.accept(piece);
          }
        }
        touch();
        subscription.request(1);
      } catch (IOException | RuntimeException e) {
        refusal = e;
        subscription.cancel();
        result.completeExceptionally(e);
      }
    }

    @Override
    public void onError(Throwable failure) {
      result.completeExceptionally(failure);
    }

    @Override
    public void onComplete() {
      result.complete(null);
    }

    void close() {
      synchronized (this) {
        closed = true;
      }
      var current = subscription;
      if (current != null) {
        current.cancel();
      }
    }
  }

  @Override
  public void close() {
    client.shutdownNow();
    client.close();
  }
}
