package org.meteora.data.hub;

import java.io.Closeable;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.TreeMap;
import java.util.zip.CRC32C;
import org.meteora.UserException;
import org.meteora.io.FolderLock;

/**
 * Which blocks of a file have been written.
 *
 * <p>It is text: a line that names size, block size and hash, then a line for each block written:
 * its number, the CRC-32C of its content, and the CRC-32C of the line itself.
 */
final class BlockJournal implements Closeable {
  private static final int LINE = 27;

  private final FileChannel channel;
  private final byte[] head;
  private final int blocks;

  /**
   * Opens or makes it; holds a lock on it until it is closed.
   *
   * @param target what is downloaded
   * @throws UserException when another download is at the same file
   */
  BlockJournal(Path journal, Path target, HubFile file, int blockBytes) throws IOException {
    head = head(file, blockBytes);
    blocks = blocks(file.size(), blockBytes);
    channel = open(journal);
    try {
      if (!FolderLock.tryLock(channel)) {
        throw new UserException(
            "another download is writing " + target + "; wait until it is done");
      }
    } catch (IOException | RuntimeException e) {
      channel.close();
      throw e;
    }
  }

  static FileChannel open(Path path) throws IOException {
    // a link in its place would lead the bytes elsewhere
    return FileChannel.open(
        path,
        StandardOpenOption.READ,
        StandardOpenOption.WRITE,
        StandardOpenOption.CREATE,
        LinkOption.NOFOLLOW_LINKS);
  }

  static int blocks(long size, int blockBytes) {
    return Math.toIntExact((size + blockBytes - 1) / blockBytes);
  }

  private static byte[] head(HubFile file, int blockBytes) {
    return ("meteora-download 1 " + file.size() + " " + blockBytes + " " + file.hash() + "\n")
        .getBytes(StandardCharsets.US_ASCII);
  }

  /**
   * The checksums of the blocks that an earlier process wrote, by their numbers; empty when the
   * journal is another content's. What follows its last valid line is cut off.
   */
  TreeMap<Integer, Integer> restore() throws IOException {
    var written = new TreeMap<Integer, Integer>();
    long valid = read(channel, head, blocks, written);
    channel.truncate(valid);
    channel.position(valid);
    return written;
  }

  /** Begins a journal without blocks. */
  void begin() throws IOException {
    channel.truncate(0);
    channel.write(ByteBuffer.wrap(head), 0);
    channel.position(head.length);
  }

  /** Makes it empty, which is no journal of any content. */
  void clear() throws IOException {
    channel.truncate(0);
  }

  /** The checksums of a journal's blocks, without changing it. */
  static TreeMap<Integer, Integer> peek(Path journal, HubFile file, int blockBytes)
      throws IOException {
    var written = new TreeMap<Integer, Integer>();
    try (var channel = FileChannel.open(journal, StandardOpenOption.READ)) {
      read(channel, head(file, blockBytes), blocks(file.size(), blockBytes), written);
    }
    return written;
  }

  /** Returns how much of the journal is valid, 0 for another content's. */
  private static long read(
      FileChannel channel, byte[] head, int blocks, TreeMap<Integer, Integer> written)
      throws IOException {
    var all = new byte[Math.toIntExact(Math.min(channel.size(), Integer.MAX_VALUE - 8))];
    var buffer = ByteBuffer.wrap(all);
    while (buffer.hasRemaining() && channel.read(buffer, buffer.position()) >= 0) {
      // until it is whole
    }
    if (all.length < head.length || !Arrays.equals(all, 0, head.length, head, 0, head.length)) {
      return 0;
    }
    int at = head.length;
    for (; at + LINE <= all.length; at += LINE) {
      var line = new String(all, at, LINE, StandardCharsets.ISO_8859_1);
      if (!line.matches("[0-9a-f]{8} [0-9a-f]{8} [0-9a-f]{8}\n")
          || Integer.parseUnsignedInt(line.substring(18, 26), 16) != crc(all, at, 17)) {
        break;
      }
      int block = Integer.parseUnsignedInt(line.substring(0, 8), 16);
      if (block < 0 || block >= blocks) {
        break;
      }
      written.put(block, Integer.parseUnsignedInt(line.substring(9, 17), 16));
    }
    return at;
  }

  /** Appends a block that has been written. */
  void add(int block, int checksum) throws IOException {
    var hex = HexFormat.of(); // String.format takes long in a fresh process
    var text = hex.toHexDigits(block) + " " + hex.toHexDigits(checksum);
    int own = crc(text.getBytes(StandardCharsets.US_ASCII), 0, text.length());
    var line = (text + " " + hex.toHexDigits(own) + "\n").getBytes(StandardCharsets.US_ASCII);
    for (var buffer = ByteBuffer.wrap(line); buffer.hasRemaining(); ) {
      channel.write(buffer);
    }
  }

  static int crc(byte[] bytes, int from, int length) {
    var crc = new CRC32C();
    crc.update(bytes, from, length);
    return (int) crc.getValue();
  }

  @Override
  public void close() throws IOException {
    channel.close();
  }
}
