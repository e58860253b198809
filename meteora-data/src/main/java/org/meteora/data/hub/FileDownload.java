package org.meteora.data.hub;

import java.io.IOException;
import java.io.InputStream;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
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
import org.meteora.io.Digests;
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

  private static final int ASIDE = 64 << 10;

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
          part.discard();
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
      throw new UserException("cannot write " + target + ": " + cause(e), e);
    }
  }

  private static String cause(IOException e) {
    return e.getCause() instanceof IOException inner
        ? AtomicFiles.reason(inner)
        : AtomicFiles.reason(e);
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
      boolean interrupted = false;
      while (!workers.isTerminated()) {
        try {
          workers.awaitTermination(1, java.util.concurrent.TimeUnit.DAYS);
        } catch (InterruptedException e) {
          interrupted = true;
        }
      }
      if (interrupted) {
        Thread.currentThread().interrupt();
      }
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
            part.blocks() / (2 * layout.connections()), 1, layout.rangeBytes() / part.blockBytes());
    try {
      for (PartFile.Range range; (range = part.claim(maximum, owner)) != null; ) {
        var sink = new BlockSink(part, range);
        try {
          get(part, range, sink, owner);
          if (sink.progress == 0) {
            throw new IOException("the server sent none of the bytes asked for");
          }
          retry.progressed();
        } catch (LeftToAnother e) {
          return;
        } catch (StatusException e) {
          boolean expired = direct.getAndSet(null) != null;
          if (!e.mayPass() && !expired) {
            throw hub.explain(repository, e);
          }
          retry.pause(e);
        } catch (IOException e) {
          direct.set(null);
          if (sink.progress > 0) {
            retry.progressed();
          }
          sink.release();
          retry.pause(e);
        } finally {
          sink.release();
        }
      }
    } catch (InterruptedException e) {
      part.fail(new UserException(file.path() + ": interrupted; run the same command to go on"));
    } catch (RuntimeException | Error e) {
      part.fail(e instanceof Exception exception ? exception : new IllegalStateException(e));
    }
  }

  private void get(PartFile part, PartFile.Range range, BlockSink sink, Object owner)
      throws IOException, InterruptedException {
    var cached = direct.get();
    var address =
        cached != null ? cached : repository.fileAddress(hub.settings().endpoint(), file.path());
    long from = part.start(range.first());
    long to = part.end(range.last());
    var headers = Map.of("Range", "bytes=" + from + "-" + (to - 1), "Accept-Encoding", "identity");
    var source =
        hub.http()
            .get(
                address,
                headers,
                reply -> {
                  check(reply, part, from, to, owner);
                  sink.startAt(reply.status() == 206 ? from : 0);
                  return sink;
                });
    direct.compareAndSet(cached, hub.http().isEndpoint(source) ? null : source);
  }

  private void check(Http.Reply reply, PartFile part, long from, long to, Object owner)
      throws IOException {
    if (!reply.header("Content-Encoding").orElse("identity").equals("identity")) {
      throw new IOException("the server sent the file in an encoding nobody asked for");
    }
    if (reply.status() == 206) {
      var range = CONTENT_RANGE.matcher(reply.header("Content-Range").orElse(""));
      if (!range.matches()
          || Long.parseLong(range.group(1)) != from
          || Long.parseLong(range.group(2)) >= to
          || !(range.group(3).equals("*") || Long.parseLong(range.group(3)) == part.size())) {
        throw new IOException("the server sent another part of the file than was asked for");
      }
    } else if (reply.status() == 200) {
      long length = reply.header("Content-Length").map(Long::parseLong).orElse(part.size());
      if (length != part.size()) {
        throw new IOException(
            "the server's file has " + length + " bytes, the listing says " + part.size());
      }
      boolean askedForAll = from == 0 && to == part.size();
      if (!askedForAll && !part.ownSequential(owner)) {
        throw new LeftToAnother();
      }
    } else {
      throw new IOException("the server answered " + reply.status() + " to a request for a file");
    }
  }

  /** Writes the blocks it has claimed, or can claim as they pass, and lets the others go by. */
  private final class BlockSink implements Http.Sink {
    private final PartFile part;
    private final PartFile.Range range;
    private final boolean[] held;
    private long position;
    private int open = -1;
    private boolean extra;
    private byte[] content;
    private long progress;

    BlockSink(PartFile part, PartFile.Range range) {
      this.part = part;
      this.range = range;
      held = new boolean[range.last() - range.first() + 1];
      java.util.Arrays.fill(held, true);
    }

    void startAt(long position) {
      this.position = position;
    }

    @Override
    public void drain(InputStream body) throws IOException {
      byte[] aside = null; // for what is not needed
      while (true) {
        int block = (int) (position / part.blockBytes());
        if (position < part.size() && position == part.start(block)) {
          extra = !inRange(block) && part.tryClaim(block);
          open = extra || (inRange(block) && held[block - range.first()]) ? block : -1;
          if (open >= 0) {
            content = part.buffer();
          }
        }
        int n;
        if (open == block) {
          int at = (int) (position - part.start(block));
          n = body.read(content, at, (int) (part.end(block) - position));
        } else {
          aside = aside != null ? aside : new byte[ASIDE];
          long wanted = position < part.size() ? part.end(block) - position : 1;
          n = body.read(aside, 0, (int) Math.min(wanted, ASIDE));
        }
        if (n < 0) {
          return;
        }
        if (position >= part.size()) {
          throw new IOException("the server sent more bytes than the file has");
        }
        position += n;
        if (open == block) {
          received.add(n);
          arrived.accept(n);
        }
        if (position == part.end(block) && open == block) {
          var whole = content;
          content = null;
          part.put(block, whole);
          progress += part.end(block) - part.start(block);
          if (extra) {
            extra = false;
          } else {
            held[block - range.first()] = false;
          }
          open = -1;
        }
      }
    }

    private boolean inRange(int block) {
      return block >= range.first() && block <= range.last();
    }

    /** Gives back what was not done; what it had of a block was in vain. */
    void release() {
      if (content != null) {
        part.recycle(content);
        content = null;
      }
      if (open >= 0) {
        arrived.accept(part.start(open) - position);
        if (extra) {
          part.release(open);
        }
        open = -1;
      }
      for (int i = 0; i < held.length; i++) {
        if (held[i]) {
          held[i] = false;
          part.release(range.first() + i);
        }
      }
    }
  }

  /** Whether {@code target} is already the file of the listing. */
  static boolean isThere(Path target, HubFile file) throws IOException {
    if (!Files.isRegularFile(target) || Files.size(target) != file.size()) {
      return false;
    }
    var digest = file.digest();
    Digests.update(digest, target, Long.MAX_VALUE);
    return HexFormat.of().formatHex(digest.digest()).equals(file.hash());
  }
}
