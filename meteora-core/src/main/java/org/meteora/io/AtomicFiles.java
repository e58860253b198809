package org.meteora.io;

import java.io.IOException;
import java.io.OutputStream;
import java.io.UncheckedIOException;
import java.nio.channels.Channels;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileSystemException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import org.meteora.UserException;

/**
 * Files that are either the old one or the whole new one: written beside their target, fsynced,
 * then renamed over it.
 */
public final class AtomicFiles {
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
      Files.createDirectories(absolute.getParent());
      temporary = Files.createTempFile(absolute.getParent(), "." + absolute.getFileName(), ".tmp");
      try (var channel = FileChannel.open(temporary, StandardOpenOption.WRITE)) {
        body.writeTo(channel);
        channel.force(true);
      }
      temporary.toFile().setReadable(true, false);
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

  /** {@link #write(Path, Body)} through a buffered stream. */
  public static void writeStream(Path target, StreamBody body) {
    write(
        target,
        channel -> {
          var out = new java.io.BufferedOutputStream(Channels.newOutputStream(channel), 1 << 16);
          body.writeTo(out);
          out.flush();
        });
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
      Files.delete(Files.createTempFile(folder, ".probe", ".tmp"));
    } catch (IOException e) {
      throw new UserException("cannot write into the folder " + folder + ": " + reason(e), e);
    }
  }

  /** The short reason of a file system's refusal, for people. */
  public static String reason(Exception e) {
    if (e instanceof AccessDeniedException) {
      return "permission denied";
    }
    if (e instanceof java.nio.file.NoSuchFileException) {
      return "no such file";
    }
    if (e instanceof FileSystemException f && f.getReason() != null) {
      return f.getReason();
    }
    return e.getMessage() == null ? e.getClass().getSimpleName() : e.getMessage();
  }

  private static void syncFolder(Path folder) throws IOException {
    try (var channel = FileChannel.open(folder, StandardOpenOption.READ)) {
      channel.force(true);
    }
  }
}
