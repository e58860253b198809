package org.meteora.data.hub;

import java.io.Closeable;
import java.io.IOException;
import java.nio.channels.Channels;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.Map;
import java.util.Set;
import java.util.regex.Pattern;
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
  private static final Pattern LINE =
      Pattern.compile("(([0-9a-f]{8}) ([0-9a-f]{8})) ([0-9a-f]{8})\n");

  private final FileChannel channel;
  private final String head;
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
    channel = FolderLock.open(journal);
    try {
      if (!FolderLock.tryLock(channel)) {
        throw new UserException("another download is writing %s; wait until it is done", target);
      }
    } catch (IOException | RuntimeException e) {
      channel.close();
      throw e;
    }
  }

  static int blocks(long size, int blockBytes) {
    return Math.toIntExact((size + blockBytes - 1) / blockBytes);
  }

  private static String head(HubFile file, int blockBytes) {
    return "meteora-download 1 " + file.size() + " " + blockBytes + " " + file.hash() + "\n";
  }

  /**
   * The checksums of the blocks that an earlier process wrote, by their numbers; empty when the
   * journal is another content's. What follows its last valid line is cut off.
   */
  Map<Integer, Integer> restore() throws IOException {
    var written = new HashMap<Integer, Integer>();
    int valid = read(Channels.newInputStream(channel).readAllBytes(), head, blocks, written);
    channel.truncate(valid).position(valid);
    return written;
  }

  /** Makes it empty, which is no journal of any content. */
  void clear() throws IOException {
    channel.truncate(0);
  }

  /** Begins an empty one. */
  void begin() throws IOException {
    write(head);
  }

  /** The numbers of a journal's blocks, without changing it. */
  static Set<Integer> peek(Path journal, HubFile file, int blockBytes) throws IOException {
    var written = new HashMap<Integer, Integer>();
    read(
        Files.readAllBytes(journal),
        head(file, blockBytes),
        blocks(file.size(), blockBytes),
        written);
    return written.keySet();
  }

  /** Returns how much of the journal is valid, 0 for another content's. */
  private static int read(byte[] journal, String head, int blocks, Map<Integer, Integer> written) {
    var text = new String(journal, StandardCharsets.ISO_8859_1);
    if (!text.startsWith(head)) {
      return 0;
    }
    int at = head.length();
    for (var line = LINE.matcher(text); line.region(at, text.length()).lookingAt(); ) {
      int block = Integer.parseUnsignedInt(line.group(2), 16);
      if (Integer.parseUnsignedInt(line.group(4), 16) != crc(line.group(1))
          || block < 0
          || block >= blocks) {
        break;
      }
      written.put(block, Integer.parseUnsignedInt(line.group(3), 16));
      at = line.end();
    }
    return at;
  }

  /** Appends a block that has been written. */
  void add(int block, int checksum) throws IOException {
    var hex = HexFormat.of(); // String.format takes long in a fresh process
    var text = hex.toHexDigits(block) + " " + hex.toHexDigits(checksum);
    write(text + " " + hex.toHexDigits(crc(text)) + "\n");
  }

  private void write(String text) throws IOException {
    for (var bytes = StandardCharsets.US_ASCII.encode(text); bytes.hasRemaining(); ) {
      channel.write(bytes);
    }
  }

  private static int crc(String text) {
    return crc(text.getBytes(StandardCharsets.US_ASCII), text.length());
  }

  /** The CRC-32C of the first bytes. */
  static int crc(byte[] bytes, int length) {
    var crc = new CRC32C();
    crc.update(bytes, 0, length);
    return (int) crc.getValue();
  }

  @Override
  public void close() throws IOException {
    channel.close();
  }
}
