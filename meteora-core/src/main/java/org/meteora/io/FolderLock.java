package org.meteora.io;

import static java.nio.charset.StandardCharsets.US_ASCII;
import static java.nio.file.StandardOpenOption.CREATE;
import static java.nio.file.StandardOpenOption.READ;
import static java.nio.file.StandardOpenOption.WRITE;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.channels.OverlappingFileLockException;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ThreadLocalRandom;
import org.meteora.UserException;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Says that one run at a time writes into a folder. The lock ends with the process, however that
 * ends; the file it lies on stays beside what was written. A run that wrote nothing takes it away
 * again, with the folders that were made for it.
 */
public final class FolderLock implements AutoCloseable {
  private static final Logger LOG = LoggerFactory.getLogger(FolderLock.class);

  /** The file that a folder of results is locked by. */
  public static final String NAME = ".lock";

  /** How often a file may be taken away before it can be locked. */
  private static final int TRIES = 100;

  /**
   * Files that this process has locked. A lock is the process's, and whoever closes any descriptor
   * of the file in it ends the lock: what is held here must not be opened again. Nor may it become
   * unreachable, which closes a channel too, when its {@link FolderLock} is dropped without being
   * closed.
   */
  private static final Map<Path, FolderLock> HELD = new ConcurrentHashMap<>();

  private final Path file;
  private final FileChannel locked;

  /** Open as long, since closing it ends the lock. */
  private final FileChannel read;

  /** Folders that were made for the file, the innermost first. */
  private final List<Path> made;

  private FolderLock(Path file, FileChannel locked, FileChannel read, List<Path> made) {
    this.file = file;
    this.locked = locked;
    this.read = read;
    this.made = made;
  }

  /**
   * Takes the lock, making the folder as needed.
   *
   * @param name of the file in the folder: {@code .lock}
   * @param refusal what to say when another run has it
   * @throws UserException when another run has it, naming its process, or the folder cannot be
   *     written to
   */
  public static FolderLock take(Path folder, String name, String refusal) {
    var file = folder.toAbsolutePath().resolve(name);
    for (int tries = 1; ; tries++) {
      try {
        return lock(file, refusal);
      } catch (IOException e) {
        // the second is what making a folder meets when others make and remove it
        boolean again = e instanceof NoSuchFileException || e instanceof FileAlreadyExistsException;
        if (!again || tries == TRIES) {
          throw new UserException(
              "cannot write into the folder " + folder + ": " + AtomicFiles.reason(e), e);
        }
      }
    }
  }

  /**
   * Locks a file.
   *
   * @throws NoSuchFileException when another run took it away between its being opened and locked
   */
  private static synchronized FolderLock lock(Path file, String refusal) throws IOException {
    var made = missing(file.getParent());
    Files.createDirectories(file.getParent());
    var real = file.getParent().toRealPath().resolve(file.getFileName());
    if (HELD.containsKey(real)) {
      throw refused(refusal, Long.toString(ProcessHandle.current().pid()));
    }
    FileChannel channel = null;
    FileChannel read = null;
    FolderLock held = null;
    try {
      channel = open(file);
      if (!locked(channel, file)) {
        throw refused(refusal, text(channel).split("\n", 2)[0]);
      }
      // processes of two containers may have the same number
      var random = Long.toHexString(ThreadLocalRandom.current().nextLong());
      var owner = ProcessHandle.current().pid() + "\n" + random + "\n";
      channel.truncate(0);
      channel.write(ByteBuffer.wrap(owner.getBytes(US_ASCII)), 0);
      read = FileChannel.open(file, READ, LinkOption.NOFOLLOW_LINKS);
      if (!text(read).equals(owner)) {
        throw new NoSuchFileException(file.toString());
      }
      held = new FolderLock(real, channel, read, made);
      HELD.put(real, held);
      return held;
    } finally {
      if (held == null) {
        close(channel);
        close(read);
      }
    }
  }

  /**
   * Opens a file to read and write, or makes it.
   *
   * @throws IOException also where a link lies in its place, which would lead the bytes elsewhere
   */
  public static FileChannel open(Path file) throws IOException {
    return FileChannel.open(file, READ, WRITE, CREATE, LinkOption.NOFOLLOW_LINKS);
  }

  private static UserException refused(String refusal, String process) {
    return new UserException(
        refusal + (process.matches("\\d+") ? " (process " + process + ")" : ""));
  }

  private static String text(FileChannel channel) throws IOException {
    var bytes = ByteBuffer.allocate(40);
    channel.read(bytes, 0);
    return new String(bytes.array(), 0, bytes.position(), US_ASCII);
  }

  /** A folder and those above it that are not there, the innermost first. */
  private static List<Path> missing(Path folder) {
    var result = new ArrayList<Path>();
    for (var each = folder;
        each != null && !Files.exists(each, LinkOption.NOFOLLOW_LINKS);
        each = each.getParent()) {
      result.add(each);
    }
    return result;
  }

  /**
   * {@link #take(Path, String, String)} of a folder that a command writes a result into.
   *
   * @throws UserException when another run is writing there
   */
  public static FolderLock takeOutput(Path folder) {
    return take(
        folder,
        NAME,
        "another run is writing into "
            + folder
            + "; wait until it is done, or choose another folder");
  }

  /**
   * Locks a file until the channel is closed; false when another process or channel has it.
   *
   * @throws IOException when the file system has no locks
   */
  public static boolean tryLock(FileChannel channel) throws IOException {
    try {
      return channel.tryLock() != null;
    } catch (OverlappingFileLockException e) {
      return false;
    }
  }

  /** Whether this process has the lock now. A file system without locks is said and believed. */
  private static boolean locked(FileChannel channel, Path file) {
    try {
      return tryLock(channel);
    } catch (IOException e) {
      LOG.warn(
          "{} cannot be locked ({}): see to it that one run at a time writes there",
          file,
          AtomicFiles.reason(e));
      return true;
    }
  }

  private static void close(FileChannel channel) {
    try {
      if (channel != null) {
        channel.close();
      }
    } catch (IOException e) {
      // nothing was written
    }
  }

  /** While it is still locked: whoever has opened the file finds out that it is gone. */
  private void removeIfAlone() {
    try {
      try (var entries = Files.list(file.getParent())) {
        if (entries.anyMatch(entry -> !entry.equals(file))) {
          return;
        }
      }
      Files.delete(file);
      for (var folder : made) {
        Files.delete(folder);
      }
    } catch (IOException | UncheckedIOException e) { // the latter while entries are listed
      // somebody writes there again, or nobody may: then it stays
    }
  }

  /** Ends the lock; does nothing the second time, when the file may be another run's. */
  @Override
  public void close() {
    if (locked.isOpen()) {
      removeIfAlone();
      close(locked);
      close(read);
      HELD.remove(file, this);
    }
  }
}
