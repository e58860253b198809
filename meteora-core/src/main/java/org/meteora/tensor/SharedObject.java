package org.meteora.tensor;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;

/** A library's file, by its ELF header (64 bits, little-endian). */
final class SharedObject {
  private static final int HEADER = 64;
  private static final int MAGIC = 0x464c457f;

  private SharedObject() {}

  /**
   * Whether the file is as long as its header says. What an installation that was killed left
   * behind may be shorter, and the dynamic linker ends the process on it (SIGBUS). False, too, for
   * what cannot be read.
   */
  static boolean whole(Path file) {
    try (var in = Files.newInputStream(file)) {
      var header = ByteBuffer.wrap(in.readNBytes(HEADER)).order(ByteOrder.LITTLE_ENDIAN);
      long size = Files.size(file);
      return header.capacity() == HEADER
          && header.getInt(0) == MAGIC
          && whole(size, header, 0x20, 0x36) // segments
          && whole(size, header, 0x28, 0x3a); // sections, which stand at the end
    } catch (IOException e) {
      return false;
    }
  }

  /**
   * Whether a table lies in the file, whose offset, size of an entry and their number are given.
   */
  private static boolean whole(long size, ByteBuffer header, int offset, int entry) {
    long from = header.getLong(offset);
    long length = (header.getShort(entry) & 0xffffL) * (header.getShort(entry + 2) & 0xffffL);
    return from >= 0 && from <= size - length;
  }
}
