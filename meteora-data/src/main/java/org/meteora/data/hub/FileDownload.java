package org.meteora.data.hub;

import java.io.IOException;
import java.io.InputStream;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.BitSet;
import java.util.HexFormat;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicReference;
import java.util.concurrent.atomic.LongAdder;
import java.util.function.LongConsumer;
import java.util.regex.Pattern;
import org.meteora.UserException;
import org.meteora.io.AtomicFiles;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * One file: fetched in ranges by several connections while this thread hashes what has arrived, in
 * order; renamed to its name only when the hash is right.
 */
final class FileDownload {
  private static final Logger LOG = LoggerFactory.getLogger(FileDownload.class);
  private static final Pattern CONTENT_RANGE =
      Pattern.compile("bytes (\\d{1,18})-(\\d{1,18})/(\\d{1,18}|\\*)");
  private static final int WRONG_HASHES = 2;

  /** Bytes a second from which on more connections only cost: writing and hashing are the limit. */
  private static final double ENOUGH = 192 << 20;

  private final HubClient hub;
  private final Repository repository;
  private final HubFile file;
  private final Path target;
  private final LongConsumer arrived;
  private final LongAdder received = new LongAdder();

  /** Where redirects have led to; asked for again when it stops working. */
  private final AtomicReference<URI> direct = new AtomicReference<>();

  /**
   * @param arrived is told of bytes as they come, from any thread; of negative ones when they were
   *     in vain
   */
  FileDownload(
      HubClient hub, Repository repository, HubFile file, Path target, LongConsumer arrived) {
    this.hub = hub;
    this.repository = repository;
    this.file = file;
    this.target = target;
    this.arrived = arrived;
  }

  /** The server sends the whole file whatever is asked, and another connection has it already. */
  private static final class LeftToAnother extends IOException {}

  /**
   * Fetches the file.
   *
   * @throws UserException when it cannot be had, or is not what the listing said
   */
  void run(int connections) throws InterruptedException {
    try {
      Files.createDirectories(target.toAbsolutePath().getParent());
      for (int attempt = 1; ; attempt++) {
        try (var part =
            new PartFile(target, file, hub.settings().layout().blockBytes(), 2 + 2 * connections)) {
          var hash = fetch(part, connections);
          if (hash.equals(file.hash())) {
            part.publish();
            return;
          }
          PartFile.discard(target);
          if (attempt == WRONG_HASHES) {
            throw new UserException(
                ("%s: what the server sent has the hash %s, the listing says %s (twice"
                        + " in a row); nothing of it was kept")
                    .formatted(file.path(), hash, file.hash()));
          }
          LOG.warn("{}: the hash is wrong; fetching it once more", file.path());
          arrived.accept(-file.size());
        }
      }
    } catch (IOException e) {
      var cause = e.getCause() instanceof IOException inner ? inner : e;
      throw new UserException("cannot write " + target + ": " + AtomicFiles.reason(cause), e);
    }
  }

  /** Returns the hash of the file once all of it is there. */
  private String fetch(PartFile part, int connections) throws IOException, InterruptedException {
    var workers = Executors.newVirtualThreadPerTaskExecutor();
    try {
      workers.submit(() -> work(part));
      workers.submit(() -> addWorkers(part, workers, Math.min(connections, part.blocks())));
      var digest = file.digest();
      for (int block = 0; block < part.blocks(); block++) {
        part.hashNext(digest);
      }
      part.finish();
      return HexFormat.of().formatHex(digest.digest());
    } finally {
      workers.shutdownNow();
      workers.close();
    }
  }

  /** Starts one more connection after the other, as long as those there are bring too little. */
  private Void addWorkers(PartFile part, ExecutorService workers, int maximum)
      throws InterruptedException {
    var pause = hub.settings().timing().ramp();
    Thread.sleep(pause.multipliedBy(3)); // connecting, and code that is not compiled yet
    for (int running = 1; running < maximum; ) {
      long before = received.sum();
      Thread.sleep(pause);
      if (received.sum() - before <= ENOUGH * pause.toNanos() / 1e9 && !part.isBehind()) {
        workers.submit(() -> work(part));
        running++;
      }
    }
    return null;
  }

  /** One connection: range after range until the file is there. */
  private void work(PartFile part) {
    var owner = new Object();
    var retry = new Retry(hub.settings().timing(), file.path());
    var layout = hub.settings().layout();
    // all connections get something, and the ranges advance together, close to the hashing
    int maximum =
        Math.clamp(
            part.blocks() / (2 * layout.connections()),
            1,
            layout.rangeBytes() / layout.blockBytes());
    try {
      for (PartFile.Range range; (range = part.claim(maximum, owner)) != null; ) {
        try {
          get(part, range, retry, owner);
        } catch (LeftToAnother e) {
          return;
        } catch (IOException e) {
          boolean expired = direct.getAndSet(null) != null;
          if (e instanceof StatusException status && !status.mayPass() && !expired) {
            throw hub.explain(repository, status);
          }
          retry.pause(e);
        }
      }
    } catch (InterruptedException e) {
      part.fail(new UserException(file.path() + ": interrupted; run the same command to go on"));
    } catch (RuntimeException | Error e) {
      part.fail(e);
    }
  }

  private void get(PartFile part, PartFile.Range range, Retry retry, Object owner)
      throws IOException, InterruptedException {
    var cached = direct.get();
    var address =
        cached != null ? cached : repository.fileAddress(hub.settings().endpoint(), file.path());
    long from = part.start(range.first());
    long to = part.start(range.last()) + part.length(range.last());
    var headers = Map.of("Range", "bytes=" + from + "-" + (to - 1), "Accept-Encoding", "identity");
    try (var sink = new BlockSink(part, range, retry)) {
      hub.http()
          .get(
              address,
              headers,
              (reply, body) -> {
                check(reply, from, to, part, owner);
                sink.drain(reply.status() == 206 ? range.first() : 0, body);
                var source = reply.address();
                direct.compareAndSet(cached, hub.http().isEndpoint(source) ? null : source);
              });
    }
  }

  private void check(Http.Reply reply, long from, long to, PartFile part, Object owner)
      throws IOException {
    if (!reply.header("Content-Encoding").orElse("identity").equals("identity")) {
      throw new IOException("the server sent the file in an encoding nobody asked for");
    }
    if (reply.status() == 206) {
      var range = CONTENT_RANGE.matcher(reply.header("Content-Range").orElse(""));
      if (!range.matches()
          || Long.parseLong(range.group(1)) != from
          || Long.parseLong(range.group(2)) >= to
          || !(range.group(3).equals("*") || Long.parseLong(range.group(3)) == file.size())) {
        throw new IOException("the server sent another part of the file than was asked for");
      }
    } else if (reply.status() == 200) {
      long length = reply.header("Content-Length").map(Long::parseLong).orElse(file.size());
      if (length != file.size()) {
        throw new IOException(
            "the server's file has " + length + " bytes, the listing says " + file.size());
      }
      boolean askedForAll = from == 0 && to == file.size();
      if (!askedForAll && !part.ownSequential(owner)) {
        throw new LeftToAnother();
      }
    } else {
      throw new IOException("the server answered " + reply.status() + " to a request for a file");
    }
  }

  /** Keeps the blocks it has claimed, or can claim as they pass, and lets the others go by. */
  private final class BlockSink implements AutoCloseable {
    private final PartFile part;
    private final Retry retry;

    /** Blocks that are claimed and have not arrived. */
    private final BitSet held = new BitSet();

    private boolean progress;

    BlockSink(PartFile part, PartFile.Range range, Retry retry) {
      this.part = part;
      this.retry = retry;
      held.set(range.first(), range.last() + 1);
    }

    /** Reads a body that begins with the block {@code first}, to its end. */
    void drain(int first, InputStream body) throws IOException {
      int block = first;
      while (block < part.blocks() && read(block, body)) {
        block++;
      }
      if (block == part.blocks() && body.read() >= 0) {
        throw new IOException("the server sent more bytes than the file has");
      }
      if (!progress) {
        throw new IOException("the server sent none of the bytes asked for");
      }
    }

    /** Returns whether the body had the whole block. */
    private boolean read(int block, InputStream body) throws IOException {
      boolean wanted = held.get(block) || part.tryClaim(block);
      held.set(block, wanted);
      var content = part.buffer();
      int length = part.length(block);
      int at = 0;
      try {
        for (int n; at < length && (n = body.read(content, at, length - at)) >= 0; at += n) {
          if (wanted) {
            received.add(n);
            arrived.accept(n);
          }
        }
      } finally {
        if (wanted && at < length) {
          arrived.accept(-at); // in vain
        }
        if (!wanted || at < length) {
          part.recycle(content);
        }
      }
      if (wanted && at == length) {
        held.clear(block);
        part.put(block, content);
        progress = true;
        retry.progressed();
      }
      return at == length;
    }

    /** Gives back what has not arrived. */
    @Override
    public void close() {
      held.stream().forEach(part::release);
    }
  }
}
