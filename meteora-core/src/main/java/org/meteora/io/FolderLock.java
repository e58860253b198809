package org.meteora.io;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.channels.OverlappingFileLockException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import org.meteora.UserException;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Says that one run at a time writes into a folder. The lock ends with the process, however that
 * ends; the empty file it lies on stays, because taking it away would let two runs lock two files.
 */
public final class FolderLock implements AutoCloseable {
  private static final Logger LOG = LoggerFactory.getLogger(FolderLock.class);

  /** The file that a folder of results is locked by. */
  public static final String NAME = ".lock";

  private final FileChannel channel;

  private FolderLock(FileChannel channel) {
    this.channel = channel;
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
    var file = folder.resolve(name);
    FileChannel channel = null;
    try {
      Files.createDirectories(folder);
      channel =
          FileChannel.open(
              file,
              StandardOpenOption.READ,
              StandardOpenOption.WRITE,
              StandardOpenOption.CREATE,
              LinkOption.NOFOLLOW_LINKS);
      if (!locked(channel, file)) {
        var owner = ByteBuffer.allocate(20);
        channel.read(owner, 0);
        var process =
            new String(owner.array(), 0, owner.position(), StandardCharsets.US_ASCII).strip();
        channel.close();
        throw new UserException(
            refusal + (process.matches("\\d+") ? " (process " + process + ")" : ""));
      }
      channel.truncate(0);
      channel.write(
          ByteBuffer.wrap(
              (ProcessHandle.current().pid() + "\n").getBytes(StandardCharsets.US_ASCII)),
          0);
      return new FolderLock(channel);
    } catch (IOException e) {
      close(channel);
      throw new UserException(
          "cannot write into the folder " + folder + ": " + AtomicFiles.reason(e), e);
    }
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

  /** Whether this process has the lock now. A file system without locks is said and believed. */
  private static boolean locked(FileChannel channel, Path file) {
    try {
      return channel.tryLock() != null;
    } catch (OverlappingFileLockException e) {
      return false;
    } catch (IOException e) {
      LOG.warn(
          "{} cannot be locked ({}): see to it that one run at a time writes there",
          file,
          AtomicFiles.reason(e));
      return true;
    }
  }

  private static void close(FileChannel channel) {
    if (channel != null) {
      try {
        channel.close();
      } catch (IOException e) {
        // nothing was written
      }
    }
  }

  @Override
  public void close() {
    close(channel);
  }
}
