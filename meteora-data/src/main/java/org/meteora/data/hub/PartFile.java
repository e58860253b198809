package org.meteora.data.hub;

import java.io.Closeable;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.ClosedChannelException;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.security.MessageDigest;
import java.util.ArrayDeque;
import java.util.BitSet;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Semaphore;
import org.meteora.UserException;
import org.meteora.io.AtomicFiles;
import org.meteora.io.FolderLock;

/**
 * A file on its way: {@code NAME.part} of the final size, and {@code NAME.part.journal} beside it,
 * which says which blocks are there ({@link BlockJournal}).
 *
 * <p>The journal's line is appended only after its block was written, and a block that an earlier
 * process wrote counts only once it was read back and has its CRC. So a killed process costs the
 * blocks it was in the midst of, and a power cut costs what had not reached the disk, noticed block
 * by block: no block is trusted because a journal says so.
 *
 * <p>Blocks that arrive about when they are to be hashed are hashed from the memory they arrived
 * in, whole: what was hashed is what was written. The others are read back.
 *
 * <p>Blocks are {@link #missing}, claimed by one connection, or {@link #written}. All methods may
 * be called from several threads.
 *
 * <p>Long, because the states of the blocks are under one lock.
 */
final class PartFile implements Closeable {
  static final String PART = ".part";
  static final String JOURNAL = ".part.journal";

  /** Files of no more blocks are written by the threads that receive them. */
  private static final int SMALL_FILE_BLOCKS = 8;

  private static final int WAITING = 5;
  private static final long SYNC_EVERY = 64 << 20;

  private final Path target;
  private final Path part;
  private final Path journalFile;
  private final long size;
  private final int blockBytes;
  private final int blocks;
  private final FileChannel data;
  private final BlockJournal journal;

  /** Blocks that nobody fetches. */
  private final BitSet missing = new BitSet();

  /** Blocks that are done, and their checksums. */
  private Map<Integer, Integer> written = new HashMap<>();

  /** Blocks' buffers, to be used again. */
  private final ArrayDeque<byte[]> spare = new ArrayDeque<>();

  /** Content of blocks from {@link #next} on, at most {@link #ahead} of them. */
  private final Map<Integer, byte[]> fresh = new HashMap<>();

  private final int ahead;

  /** The block to be hashed. */
  private int next;

  /**
   * Writes while the next blocks arrive. More threads than this one would only wait for each other:
   * a file system lets one at a time write.
   */
  private final ExecutorService writer =
      Executors.newSingleThreadExecutor(Thread.ofPlatform().daemon().name("write").factory());

  /** Blocks that may wait for {@link #writer}; who brings more waits too. */
  private final Semaphore room = new Semaphore(WAITING);

  private long unsynced;
  private boolean syncing;
  private Throwable failure;
  private boolean finished;
  private Object sequentialOwner;

  /**
   * Opens or makes both files; what they hold from an earlier try of the same content is kept.
   *
   * @param ahead how many blocks from the one to be hashed on are kept in memory until they are
   * @throws UserException when another download is at the same file
   */
  PartFile(Path target, HubFile file, int blockBytes, int ahead) throws IOException {
    this.target = target;
    this.ahead = ahead;
    this.part = beside(target, PART);
    this.journalFile = beside(target, JOURNAL);
    this.size = file.size();
    this.blockBytes = blockBytes;
    blocks = BlockJournal.blocks(size, blockBytes);
    journal = new BlockJournal(journalFile, target, file, blockBytes);
    try {
      data = FolderLock.open(part);
    } catch (IOException | RuntimeException e) {
      journal.close();
      throw e;
    }
    try {
      restore();
    } catch (IOException | RuntimeException e) {
      close();
      throw e;
    }
  }

  private void restore() throws IOException {
    if (data.size() == size) {
      written = journal.restore();
    }
    missing.set(0, blocks);
    written.keySet().forEach(missing::clear);
    if (written.isEmpty()) {
      // shortened first: a new size with the old journal must never be seen together
      journal.clear();
      data.truncate(0);
      if (size > 0) {
        data.write(ByteBuffer.allocate(1), size - 1);
      }
      journal.begin();
    }
  }

  private static Path beside(Path target, String suffix) {
    return target.resolveSibling(target.getFileName() + suffix);
  }

  /** How many bytes of {@code file} an earlier try has left, by its journal alone. */
  static long bytesThere(Path target, HubFile file, int blockBytes) {
    var part = beside(target, PART);
    var journalFile = beside(target, JOURNAL);
    try {
      if (!Files.isRegularFile(journalFile, LinkOption.NOFOLLOW_LINKS)
          || !Files.isRegularFile(part, LinkOption.NOFOLLOW_LINKS)
          || Files.size(part) != file.size()) {
        return 0;
      }
      long there = 0;
      for (int block : BlockJournal.peek(journalFile, file, blockBytes)) {
        there += Math.min(blockBytes, file.size() - (long) block * blockBytes);
      }
      return there;
    } catch (IOException e) {
      return 0;
    }
  }

  int blocks() {
    return blocks;
  }

  long start(int block) {
    return (long) block * blockBytes;
  }

  int length(int block) {
    return (int) Math.min(blockBytes, size - start(block));
  }

  /** Blocks {@code first} to {@code last}, both inclusive. */
  record Range(int first, int last) {}

  /**
   * Claims the first run of missing blocks, at most {@code maximum} long; waits while there is none
   * but may be again.
   *
   * @return null when the file is finished or has failed, or is left to another connection that
   *     fetches it in one go
   */
  synchronized Range claim(int maximum, Object owner) throws InterruptedException {
    while (!finished && failure == null && (sequentialOwner == null || sequentialOwner == owner)) {
      int first = missing.nextSetBit(0);
      if (first >= 0) {
        int end = Math.min(missing.nextClearBit(first), first + maximum);
        missing.clear(first, end);
        return new Range(first, end - 1);
      }
      wait();
    }
    return null;
  }

  /** Claims one block that passes by. */
  synchronized boolean tryClaim(int block) {
    boolean free = missing.get(block);
    missing.clear(block);
    return free;
  }

  /** Whether {@code owner} is now the one connection to a server that sends whole files only. */
  synchronized boolean ownSequential(Object owner) {
    if (sequentialOwner == null) {
      sequentialOwner = owner;
      notifyAll();
    }
    return sequentialOwner == owner;
  }

  /** Gives a block back that was claimed and not done. */
  synchronized void release(int block) {
    missing.set(block);
    notifyAll();
  }

  /** A buffer for a block, as large as the largest. */
  synchronized byte[] buffer() {
    var buffer = spare.poll();
    return buffer != null ? buffer : new byte[(int) Math.min(blockBytes, size)];
  }

  /** Takes a buffer back. */
  synchronized void recycle(byte[] buffer) {
    spare.push(buffer);
  }

  /**
   * Takes a claimed block that has arrived: it is written, then gets its line in the journal, soon.
   * What goes wrong with that fails the whole file.
   *
   * @param content begins with the block; one of {@link #buffer}'s, not the caller's any more
   */
  void put(int block, byte[] content) {
    if (blocks <= SMALL_FILE_BLOCKS) {
      write(block, content);
    } else {
      room.acquireUninterruptibly();
      writer.execute(
          () -> {
            write(block, content);
            room.release();
          });
    }
  }

  /** Whether blocks wait to be written: the disk is what takes the time. */
  boolean isBehind() {
    return room.availablePermits() < WAITING - 1;
  }

  private void write(int block, byte[] content) {
    try {
      int length = length(block);
      int checksum = BlockJournal.crc(content, length);
      long position = start(block);
      for (var bytes = ByteBuffer.wrap(content, 0, length); bytes.hasRemaining(); ) {
        position += data.write(bytes, position);
      }
      done(block, checksum, content);
    } catch (IOException | RuntimeException e) {
      fail(e);
    }
  }

  private synchronized void done(int block, int checksum, byte[] content) throws IOException {
    journal.add(block, checksum);
    written.put(block, checksum);
    unsynced += length(block);
    if (block >= next && block - next < ahead) {
      fresh.put(block, content);
    } else {
      spare.push(content);
    }
    notifyAll();
    if (!syncing && unsynced >= SYNC_EVERY) {
      syncing = true;
      unsynced = 0;
      Thread.ofPlatform().daemon().name("sync").start(this::sync);
    }
  }

  /** Has the disk work while the rest arrives. */
  private void sync() {
    try {
      data.force(false);
    } catch (ClosedChannelException e) {
      // the file is done with
    } catch (IOException e) {
      fail(e);
    } finally {
      synchronized (this) {
        syncing = false;
      }
    }
  }

  /**
   * Hashes the next block once it is done. A block that the disk does not hold as written is
   * missing again, and waited for again.
   */
  void hashNext(MessageDigest digest) throws InterruptedException, IOException {
    int block = next;
    int length = length(block);
    while (true) {
      byte[] content;
      int expected;
      synchronized (this) {
        while (!written.containsKey(block)) {
          if (failure instanceof UserException user) {
            throw user;
          }
          if (failure != null) {
            throw new IOException(failure);
          }
          wait();
        }
        content = fresh.remove(block);
        expected = written.get(block);
      }
      boolean right = true;
      if (content == null) {
        content = buffer();
        var bytes = ByteBuffer.wrap(content, 0, length);
        while (bytes.hasRemaining() && data.read(bytes, start(block) + bytes.position()) >= 0) {
          // until it is whole
        }
        right = !bytes.hasRemaining() && BlockJournal.crc(content, length) == expected;
      }
      if (right) {
        digest.update(content, 0, length);
      }
      synchronized (this) {
        spare.push(content);
        if (right) {
          next = block + 1;
          return;
        }
        written.remove(block);
        missing.set(block);
        notifyAll();
      }
    }
  }

  /** Something is wrong that no retry mends: everybody waiting is told. */
  synchronized void fail(Throwable reason) {
    if (failure == null) {
      failure = reason;
    }
    notifyAll();
  }

  /** All blocks are done and checked: nobody needs to wait for more. */
  synchronized void finish() {
    finished = true;
    notifyAll();
  }

  /** Makes it the target: synced, renamed, the journal removed. */
  void publish() throws IOException {
    data.force(true);
    Files.move(part, target, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
    AtomicFiles.syncFolder(target.toAbsolutePath().getParent());
    Files.deleteIfExists(journalFile);
  }

  /** Removes both files, if they are there. */
  static void discard(Path target) throws IOException {
    Files.deleteIfExists(beside(target, PART));
    Files.deleteIfExists(beside(target, JOURNAL));
  }

  @Override
  public void close() throws IOException {
    try (journal;
        data) {
      writer.close();
    }
  }
}
