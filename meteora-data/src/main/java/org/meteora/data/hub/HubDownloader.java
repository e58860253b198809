package org.meteora.data.hub;

import java.io.IOException;
import java.io.OutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.DigestOutputStream;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.HexFormat;
import java.util.List;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorCompletionService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.function.ToLongFunction;
import java.util.function.UnaryOperator;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import org.meteora.UserException;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Progress;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Fetches a repository's files into a folder. Can be stopped at any moment and called again: files
 * that are there and have their hash are left alone, files begun are gone on with.
 *
 * @param usableSpace free bytes of the disk that an existing folder is on
 */
public record HubDownloader(HubClient hub, ToLongFunction<Path> usableSpace) {
  private static final Logger LOG = LoggerFactory.getLogger(HubDownloader.class);

  public HubDownloader(HubClient hub) {
    this(hub, HubDownloader::usableSpace);
  }

  /**
   * What a download did.
   *
   * @param files in the listing's order, relative to the folder
   * @param fetched how many of them were not there before
   */
  public record Result(Path folder, String commit, List<Path> files, int fetched) {}

  private record Item(HubFile file, Path target) {}

  /**
   * Fetches all files whose path matches one of {@code includes} (all files when there is none).
   *
   * @throws UserException for everything that can go wrong; what was fetched is kept for the next
   *     call, what is under its own name is right
   */
  public Result download(Repository repository, List<String> includes, Path folder)
      throws InterruptedException {
    return download(hub.list(repository), includes, folder, UnaryOperator.identity());
  }

  /** As above, with a listing at hand; {@code rename} gives the path in the folder of a path. */
  Result download(
      HubClient.Listing listing, List<String> includes, Path folder, UnaryOperator<String> rename)
      throws InterruptedException {
    var repository = listing.repository();
    var items = select(listing, includes, folder, rename);
    var missing = new ArrayList<Item>();
    long total = 0;
    for (var item : items) {
      if (!isThere(item)) {
        missing.add(item);
        total +=
            item.file.size()
                - PartFile.bytesThere(item.target, item.file, hub.settings().layout().blockBytes());
      }
    }
    AtomicFiles.requireWritableFolder(folder);
    long free = usableSpace.applyAsLong(folder);
    if (free < total) {
      throw new UserException(
          ("the disk of %s has %s free, the %s needs %s more; free some, choose another"
                  + " disk with --to or fewer files with --include")
              .formatted(folder, readable(free), repository, readable(total)));
    }
    LOG.info(
        "{} at {}: {} of {} files to fetch, {}, into {}",
        repository,
        repository.revision().substring(0, 8),
        missing.size(),
        items.size(),
        readable(total),
        folder);
    try (var meter = new Meter(repository.id(), total)) {
      fetchAll(repository, missing, meter);
    }
    return new Result(
        folder,
        repository.revision(),
        items.stream().map(item -> folder.relativize(item.target)).toList(),
        missing.size());
  }

  private static List<Item> select(
      HubClient.Listing listing, List<String> includes, Path folder, UnaryOperator<String> rename) {
    var targets = new HashSet<Path>();
    var items = new ArrayList<Item>();
    var patterns = includes.stream().map(Globs::compile).toList();
    for (var file : listing.files()) {
      // also files nobody asked for: a listing that tries to climb is not to be believed at all
      SafePaths.resolve(folder, file.path());
      if (patterns.isEmpty()
          || patterns.stream().map(Pattern::asMatchPredicate).anyMatch(p -> p.test(file.path()))) {
        var target = SafePaths.resolve(folder, rename.apply(file.path()));
        if (!targets.add(target)) {
          throw new UserException("the " + listing.repository() + " has two files for " + target);
        }
        items.add(new Item(file, target));
      }
    }
    if (items.isEmpty()) {
      throw new UserException(
          includes.isEmpty()
              ? "the " + listing.repository() + " has no files"
              : "no file of the %s matches %s; it has %s%s"
                  .formatted(
                      listing.repository(),
                      String.join(", ", includes),
                      String.join(
                          ", ", listing.files().stream().limit(8).map(HubFile::path).toList()),
                      listing.files().size() > 8 ? ", …" : ""));
    }
    return items;
  }

  /** Whether a file is already that of the listing. */
  private static boolean isThere(Item item) {
    try {
      if (!Files.isRegularFile(item.target)
          || Files.size(item.target) != item.file.size()
          || !copy(item.target, OutputStream.nullOutputStream(), item.file)) {
        return false;
      }
      // a kill between renaming and tidying up leaves a journal behind
      PartFile.discard(item.target);
      return true;
    } catch (IOException e) {
      throw new UserException("cannot read " + item.target + ": " + AtomicFiles.reason(e), e);
    }
  }

  /** Returns whether what was copied is the file of the listing. */
  private static boolean copy(Path from, OutputStream to, HubFile file) throws IOException {
    var digest = file.digest();
    Files.copy(from, new DigestOutputStream(to, digest));
    return HexFormat.of().formatHex(digest.digest()).equals(file.hash());
  }

  /** Small files side by side, one connection each; big ones one by one, with all connections. */
  private void fetchAll(Repository repository, List<Item> items, Meter meter)
      throws InterruptedException {
    var layout = hub.settings().layout();
    var bySize =
        items.stream()
            .collect(Collectors.partitioningBy(i -> i.file.size() <= layout.rangeBytes() / 4));
    var small = bySize.get(true);
    var pool = Executors.newFixedThreadPool(layout.connections(), Thread.ofVirtual().factory());
    try {
      var done = new ExecutorCompletionService<Void>(pool);
      for (var item : small) {
        done.submit(
            () -> {
              fetch(repository, item, 1, meter);
              return null;
            });
      }
      for (int i = 0; i < small.size(); i++) {
        done.take().get();
      }
    } catch (ExecutionException e) {
      if (e.getCause() instanceof RuntimeException failure) {
        throw failure;
      }
      throw new IllegalStateException(e.getCause());
    } finally {
      pool.shutdownNow();
      pool.awaitTermination(1, TimeUnit.MINUTES);
    }
    for (var item : bySize.get(false)) {
      fetch(repository, item, layout.connections(), meter);
    }
  }

  private void fetch(Repository repository, Item item, int connections, Meter meter)
      throws InterruptedException {
    long there = PartFile.bytesThere(item.target, item.file, hub.settings().layout().blockBytes());
    if (there == 0 && fromCache(repository, item)) {
      meter.add(item.file.size());
      return;
    }
    meter.begin(item.file, there);
    new FileDownload(hub, repository, item.file, item.target, meter::add).run(connections);
  }

  /** Copies the file from the Python client's cache, where blobs are named by their hash. */
  private boolean fromCache(Repository repository, Item item) {
    var blob =
        hub.settings()
            .cache()
            .resolve(repository.cacheFolder())
            .resolve("blobs")
            .resolve(item.file.hash());
    try {
      if (!Files.isRegularFile(blob) || Files.size(blob) != item.file.size()) {
        return false;
      }
      AtomicFiles.writeStream(
          item.target,
          out -> {
            if (!copy(blob, out, item.file)) {
              throw new IOException("not what its name says");
            }
          });
      LOG.debug("{}: copied from {}", item.file.path(), blob);
      return true;
    } catch (IOException | UserException e) {
      LOG.debug("{}: not copied from {}: {}", item.file.path(), blob, e.getMessage());
      return false;
    }
  }

  private static long usableSpace(Path folder) {
    try {
      return Files.getFileStore(folder).getUsableSpace();
    } catch (IOException e) {
      return Long.MAX_VALUE; // nobody knows: the disk will say
    }
  }

  static String readable(long bytes) {
    if (bytes < 1 << 20) {
      return bytes + " bytes";
    }
    return bytes < 1L << 30
        ? "%.1f MiB".formatted(bytes / 0x1p20)
        : "%.1f GiB".formatted(bytes / 0x1p30);
  }

  /** The progress bar of the whole, with the present file's state behind it. */
  private static final class Meter implements AutoCloseable {
    private final Progress progress;
    private HubFile current;
    private long done;
    private long there;
    private long start;
    private long shown;

    Meter(String name, long total) {
      progress = new Progress(name, total, " MiB", 1 << 20);
    }

    synchronized void begin(HubFile file, long there) {
      current = file;
      this.there = there;
      done = 0;
      start = System.nanoTime();
    }

    synchronized void add(long bytes) {
      done += bytes;
      long now = System.nanoTime();
      if (current != null && now - shown > 200_000_000L) {
        shown = now;
        double seconds = (now - start) / 1e9;
        long left = current.size() - there - done;
        progress.note(
            current.path()
                + (done > 0 && left >= 0
                    ? " %d%%, %.0f s left"
                        .formatted(100 * (there + done) / current.size(), seconds / done * left)
                    : ""));
      }
      progress.step(bytes);
    }

    @Override
    public synchronized void close() {
      progress.close();
    }
  }
}
