package org.meteora.io;

import java.io.BufferedOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.io.UncheckedIOException;
import java.nio.channels.Channels;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.AccessDeniedException;
import java.nio.file.DirectoryIteratorException;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.FileSystemException;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.Comparator;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ThreadLocalRandom;
import java.util.regex.Pattern;
import org.meteora.UserException;

/**
 * Files that are either the old one or the whole new one: written beside their target, fsynced,
 * then renamed over it.
 */
public final class AtomicFiles {
  private static final long PROCESS = ProcessHandle.current().pid();
  private static final Pattern LEFTOVER =
      Pattern.compile("\\..+\\.(\\d{1,18})-[0-9a-f]{1,16}\\.tmp");
  private static final Set<Path> LOOKED_THROUGH = ConcurrentHashMap.newKeySet();

  private AtomicFiles() {}

  /** Writes the body of a file. */
  @FunctionalInterface
  public interface Body {
    void writeTo(FileChannel channel) throws IOException;
  }

  /** Writes the body of a file as a stream. */
  @FunctionalInterface
  public interface StreamBody {
    void writeTo(OutputStream out) throws IOException;
  }

  /**
   * Creates or replaces {@code target}, making its folders as needed. On any failure the target
   * stays as it was and the temporary file is removed.
   *
   * @throws UserException when the file system refuses (read-only, disk full)
   */
  public static void write(Path target, Body body) {
    var absolute = target.toAbsolutePath();
    Path temporary = null;
    try {
      if (Files.isSymbolicLink(absolute) && Files.exists(absolute)) {
        absolute = absolute.toRealPath(); // the link stays one
      }
      Files.createDirectories(absolute.getParent());
      removeLeftovers(absolute.getParent());
      temporary = temporary(absolute);
      try (var channel =
          FileChannel.open(temporary, StandardOpenOption.WRITE, StandardOpenOption.CREATE_NEW)) {
        lock(channel);
        keepPermissions(absolute, temporary);
        body.writeTo(channel);
        channel.force(true);
      }
      Files.move(
          temporary, absolute, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
      temporary = null;
      syncFolder(absolute.getParent());
    } catch (IOException | UncheckedIOException e) {
      throw new UserException("cannot write " + target + ": " + reason(e), e);
    } finally {
      if (temporary != null) {
        try {
          Files.deleteIfExists(temporary);
        } catch (IOException e) {
          // the failure that brought us here is the one to report
        }
      }
    }
  }

  private static Path temporary(Path target) {
    long random = ThreadLocalRandom.current().nextLong();
    return target.resolveSibling(
        "." + target.getFileName() + "." + PROCESS + "-" + Long.toHexString(random) + ".tmp");
  }

  /** Tells others that the file is being written; a file system without locks is left at that. */
  private static boolean lock(FileChannel channel) {
    try {
      return FolderLock.tryLock(channel);
    } catch (IOException e) {
      return true;
    }
  }

  /** New files have what the umask leaves; a file that is replaced keeps its own. */
  private static void keepPermissions(Path old, Path fresh) throws IOException {
    if (Files.exists(old)
        && fresh.getFileSystem().supportedFileAttributeViews().contains("posix")) {
      Files.setPosixFilePermissions(fresh, Files.getPosixFilePermissions(old));
    }
  }

  /**
   * Removes what a process that was killed left behind in a folder; what a living one is writing is
   * locked and stays. Each folder is looked through once by a process.
   */
  public static void removeLeftovers(Path folder) {
    if (!LOOKED_THROUGH.add(folder.toAbsolutePath().normalize())) {
      return;
    }
    try (var entries = Files.newDirectoryStream(folder, ".*.tmp")) {
      for (var entry : entries) {
        var name = LEFTOVER.matcher(entry.getFileName().toString());
        if (name.matches()
            && Files.isRegularFile(entry, LinkOption.NOFOLLOW_LINKS)
            && isDead(entry, Long.parseLong(name.group(1)))) {
          Files.deleteIfExists(entry);
        }
      }
    } catch (IOException | DirectoryIteratorException e) {
      // nothing depends on it
    }
  }

  private static boolean isDead(Path file, long process) throws IOException {
    if (process == PROCESS) {
      return false;
    }
    // between making a file and locking it there is a moment
    boolean fresh =
        System.currentTimeMillis() - Files.getLastModifiedTime(file).toMillis() < 60_000;
    if (fresh && ProcessHandle.of(process).isPresent()) {
      return false;
    }
    try (var channel = FileChannel.open(file, StandardOpenOption.WRITE)) {
      return lock(channel);
    }
  }

  /** {@link #write(Path, Body)} through a buffered stream. */
  public static void writeStream(Path target, StreamBody body) {
    write(
        target,
        channel -> {
          var out = new BufferedOutputStream(Channels.newOutputStream(channel), 1 << 16);
          body.writeTo(out);
          out.flush();
        });
  }

  /**
   * {@link #write(Path, Body)} of what another file holds.
   *
   * @throws UserException naming the target when the one cannot be read or the other not written
   */
  public static void copy(Path source, Path target) {
    writeStream(target, out -> Files.copy(source, out));
  }

  /** {@link #write(Path, Body)} of a text in UTF-8. */
  public static void writeString(Path target, String text) {
    writeStream(target, out -> out.write(text.getBytes(StandardCharsets.UTF_8)));
  }

  /**
   * Fails at once, before hours of work, when a folder cannot be written to; makes the folder.
   *
   * @throws UserException naming the folder
   */
  public static void requireWritableFolder(Path folder) {
    try {
      Files.createDirectories(folder);
      removeLeftovers(folder);
      var probe = temporary(folder.toAbsolutePath().resolve("probe"));
      Files.delete(Files.createFile(probe));
    } catch (IOException e) {
      throw new UserException("cannot write into the folder " + folder + ": " + reason(e), e);
    }
  }

  /** The short reason of a file system's refusal, for people. */
  public static String reason(Exception e) {
    return switch (e) {
      case AccessDeniedException _ -> "permission denied";
      case NoSuchFileException _ -> "no such file";
      case FileAlreadyExistsException f -> f.getFile() + " is in the way";
      case FileSystemException f when f.getReason() != null -> f.getReason();
      default -> e.getMessage() == null ? e.getClass().getSimpleName() : e.getMessage();
    };
  }

  /** What was renamed in a folder survives a crash of the machine from now on. */
  public static void syncFolder(Path folder) throws IOException {
    try (var channel = FileChannel.open(folder, StandardOpenOption.READ)) {
      channel.force(true);
    }
  }

  /** Deletes a file, or a folder with all that is in it; links are deleted, not followed. */
  public static void removeTree(Path path) throws IOException {
    try (var all = Files.walk(path)) {
      for (var each : all.sorted(Comparator.reverseOrder()).toList()) { // what is in it first
        Files.delete(each);
      }
    } catch (UncheckedIOException e) {
      throw e.getCause();
    }
  }
}
