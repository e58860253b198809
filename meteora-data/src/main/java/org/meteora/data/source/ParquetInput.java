package org.meteora.data.source;

import dev.hardwood.InputFile;
import java.io.EOFException;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.LongAdder;

/**
 * A file for the Parquet library, read and not mapped: a file that is cut short meanwhile is an
 * error like others, and it is known when one waits for the disk.
 */
class ParquetInput implements InputFile {
  /** What the file system is asked for at once: more would need a buffer of that size beside. */
  private static final int PIECE = 1 << 20;

  private final Path file;
  private final AtomicInteger reading = new AtomicInteger();
  private final LongAdder bytes = new LongAdder();
  private volatile FileChannel channel;
  private volatile long size;

  ParquetInput(Path file) {
    this.file = file;
  }

  @Override
  public void open() throws IOException {
    if (channel == null) {
      channel = FileChannel.open(file);
      size = channel.size();
    }
  }

  @Override
  public ByteBuffer readRange(long offset, int length) throws IOException {
    if (offset < 0 || length < 0 || length > size - offset) {
      throw new EOFException("the file ends before byte " + offset + " + " + length);
    }
    reading.incrementAndGet();
    try {
      var result = ByteBuffer.allocate(length);
      while (result.hasRemaining()) {
        int at = result.position();
        result.limit(Math.min(length, at + PIECE));
        int n = channel.read(result, offset + at);
        result.limit(length);
        if (n < 0) {
          throw new EOFException("the file ends at byte " + (offset + at));
        }
        arrived(n);
      }
      return result.flip();
    } finally {
      reading.decrementAndGet();
    }
  }

  /** Hears of bytes as they come. */
  void arrived(int n) throws IOException {
    bytes.add(n);
  }

  /** Whether somebody waits for the disk. */
  boolean isReading() {
    return reading.get() > 0;
  }

  /** Bytes of the file. */
  long size() {
    return size;
  }

  /** How many bytes have been read. */
  long bytes() {
    return bytes.sum();
  }

  @Override
  public long length() {
    return size;
  }

  @Override
  public String name() {
    return file.getFileName().toString();
  }

  @Override
  public void close() throws IOException {
    if (channel != null) {
      channel.close();
    }
  }
}
