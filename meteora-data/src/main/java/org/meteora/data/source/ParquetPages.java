package org.meteora.data.source;

import dev.hardwood.InputFile;
import dev.hardwood.internal.metadata.PageHeader;
import dev.hardwood.internal.thrift.PageHeaderReader;
import dev.hardwood.internal.thrift.ThriftCompactReader;
import dev.hardwood.metadata.ColumnChunk;
import dev.hardwood.metadata.CompressionCodec;
import dev.hardwood.metadata.FileMetaData;
import java.io.IOException;

/**
 * Looks at the header of every page of a Parquet file before the library reads it: the library
 * believes what they say, and a broken one sends it round in circles or for memory without end.
 */
final class ParquetPages {
  /** Bytes of a page once unpacked: pages are about 1 MiB, a large value makes one larger. */
  static final int MAXIMUM_PAGE = 256 << 20;

  /** Values of a page; runs of equal values cost nothing in the file. */
  static final int MAXIMUM_VALUES = 100_000_000;

  /** Bytes of a page's header, statistics of long texts among them. */
  private static final int MAXIMUM_HEADER = 16 << 20;

  /** Before the first page and after the last one: the file's mark, and the footer's length. */
  private static final int MARK = 4;

  private ParquetPages() {}

  /**
   * Checks the row counts, and every page's place and sizes.
   *
   * @throws IOException saying what is wrong
   */
  static void check(InputFile file, FileMetaData footer) throws IOException {
    long rows = 0;
    try {
      for (var group : footer.rowGroups()) {
        if (group.numRows() < 0) {
          throw new IOException("a row group of " + group.numRows() + " rows");
        }
        if (group.columns().isEmpty()) {
          throw new IOException("a row group without columns");
        }
        rows = Math.addExact(rows, group.numRows());
        for (var column : group.columns()) {
          check(file, column, group.numRows());
        }
      }
    } catch (ArithmeticException e) {
      throw new IOException("sizes beyond all measure", e);
    }
    if (rows != footer.numRows()) {
      throw new IOException(
          "its row groups hold " + rows + " rows, its footer says " + footer.numRows());
    }
  }

  private static void check(InputFile file, ColumnChunk column, long rows) throws IOException {
    var data = column.metaData();
    var name = "the column " + data.pathInSchema();
    long at = column.chunkStartOffset();
    long end = Math.addExact(at, data.totalCompressedSize());
    if (at < MARK || end <= at && data.numValues() > 0 || end > file.length() - 2 * MARK) {
      throw new IOException(name + " does not lie in the file");
    }
    long values = 0;
    while (at < end) {
      int bytes = (int) Math.min(end - at, 1 << 10);
      PageHeader header = null;
      int length = 0;
      while (header == null) {
        var reader = new ThriftCompactReader(file.readRange(at, bytes));
        try {
          header = PageHeaderReader.read(reader);
          length = reader.getBytesRead();
        } catch (IOException | RuntimeException e) {
          // perhaps it is longer
          if (bytes == end - at || bytes >= MAXIMUM_HEADER) {
            throw new IOException(name + ": a broken page header at " + at, e);
          }
          bytes = (int) Math.min(end - at, 16L * bytes);
        }
      }
      int packed = header.compressedPageSize();
      int unpacked = header.uncompressedPageSize();
      if (packed < 0 || packed > end - at - length) {
        throw new IOException(name + ": a page of " + packed + " bytes at " + at);
      }
      if (unpacked < 0 || unpacked > MAXIMUM_PAGE) {
        throw new IOException(
            name + ": a page that unpacks to " + unpacked + " bytes, more than " + MAXIMUM_PAGE);
      }
      int count = 0;
      if (header.dataPageHeader() != null) {
        count = header.dataPageHeader().numValues();
      } else if (header.dataPageHeaderV2() != null) {
        count = header.dataPageHeaderV2().numValues();
      } else if (header.dictionaryPageHeader() != null
          && header.dictionaryPageHeader().numValues() > Math.max(1, unpacked)) {
        throw new IOException(name + ": a dictionary larger than its page");
      }
      if (count < 0 || count > MAXIMUM_VALUES) {
        throw new IOException(name + ": a page of " + count + " values");
      }
      if (data.codec() == CompressionCodec.SNAPPY) {
        requireSnappyLength(file, name, header, at + length);
      }
      values += count;
      at += length + packed;
    }
    // a list's values are at least as many as rows: an empty one counts
    if (values != data.numValues() || values < rows) {
      throw new IOException(
          "%s holds %s values, %s are said of %s rows"
              .formatted(name, values, data.numValues(), rows));
    }
  }

  /**
   * Snappy's native library writes as much as the packed bytes begin by saying, not as much as
   * there is room for.
   */
  private static void requireSnappyLength(InputFile file, String name, PageHeader header, long at)
      throws IOException {
    int levels = 0;
    var second = header.dataPageHeaderV2();
    if (second != null) {
      if (!second.isCompressed()) {
        return;
      }
      levels =
          Math.addExact(second.repetitionLevelsByteLength(), second.definitionLevelsByteLength());
      if (second.repetitionLevelsByteLength() < 0
          || second.definitionLevelsByteLength() < 0
          || levels > header.uncompressedPageSize()
          || levels > header.compressedPageSize()) {
        throw new IOException(name + ": levels larger than their page");
      }
    }
    int packed = header.compressedPageSize() - levels;
    int expected = header.uncompressedPageSize() - levels;
    if (packed == 0 && expected == 0) {
      return;
    }
    var bytes = file.readRange(at + levels, Math.min(packed, 5));
    long said = 0;
    boolean whole = false;
    for (int shift = 0; bytes.hasRemaining() && !whole; shift += 7) {
      int part = bytes.get();
      said |= (part & 0x7fL) << shift;
      whole = part >= 0;
    }
    if (!whole || said != expected) {
      throw new IOException(
          name + ": a page that is said to unpack to " + expected + " bytes unpacks to " + said);
    }
  }
}
