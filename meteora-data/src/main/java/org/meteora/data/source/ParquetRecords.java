package org.meteora.data.source;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import dev.hardwood.InputFile;
import dev.hardwood.reader.ParquetFileReader;
import dev.hardwood.reader.RowGroupPredicate;
import dev.hardwood.row.PqList;
import dev.hardwood.row.PqStruct;
import dev.hardwood.row.StructAccessor;
import java.io.IOException;
import java.nio.file.Path;
import java.util.function.BiConsumer;
import java.util.logging.Level;
import java.util.logging.Logger;
import org.meteora.UserException;

/**
 * A Parquet file, row by row as JSON objects; lists and structs nested. Memory holds a row group at
 * a time, whatever the size of the file. The file is mapped: it must not be cut short meanwhile.
 */
record ParquetRecords(Path file) implements Records {
  private static final JsonNodeFactory JSON = JsonNodeFactory.instance;

  /** Kept, or the level would be forgotten: the library tells at every start what it found. */
  private static final Logger LIBRARY = Logger.getLogger("dev.hardwood");

  static {
    LIBRARY.setLevel(Level.WARNING);
  }

  @Override
  public void forEach(BiConsumer<JsonNode, String> each) {
    long row = 0;
    try (var reader = ParquetFileReader.open(InputFile.of(file))) {
      // one reader for each row group: a single one decodes many of them ahead
      for (var group : reader.getFileMetaData().rowGroups()) {
        long start = group.columns().getFirst().chunkStartOffset();
        long end =
            start
                + group.columns().stream().mapToLong(c -> c.metaData().totalCompressedSize()).sum();
        try (var rows =
            reader.buildRowReader().filter(RowGroupPredicate.byteRange(start, end)).build()) {
          while (rows.hasNext()) {
            rows.next();
            row++;
            each.accept(object(rows), file + ": row " + row);
          }
        }
      }
      long expected = reader.getFileMetaData().numRows();
      if (row != expected) {
        throw new UserException(file + ": holds " + row + " rows, but its footer says " + expected);
      }
    } catch (UserException e) {
      throw e;
    } catch (IOException | RuntimeException | OutOfMemoryError e) {
      Throwable cause = e; // the reader's own threads wrap what went wrong
      while (cause.getCause() != null) {
        cause = cause.getCause();
      }
      if (cause instanceof OutOfMemoryError) {
        throw new UserException(
            file + ": out of memory: its row groups need a larger heap (java -Xmx)", e);
      }
      throw new UserException(
          file
              + ": not a readable Parquet file (row "
              + row
              + "): "
              + String.valueOf(cause.getMessage()).lines().findFirst().orElse(""),
          e);
    }
  }

  private static JsonNode object(StructAccessor struct) {
    var node = JSON.objectNode();
    for (int i = 0; i < struct.getFieldCount(); i++) {
      var name = struct.getFieldName(i);
      node.set(name, struct.isNull(name) ? JSON.nullNode() : value(struct.getValue(name)));
    }
    return node;
  }

  private static JsonNode value(Object value) {
    return switch (value) {
      case null -> JSON.nullNode();
      case String text -> JSON.textNode(text);
      case Integer number -> JSON.numberNode(number);
      case Long number -> JSON.numberNode(number);
      case Float number -> JSON.numberNode(number);
      case Double number -> JSON.numberNode(number);
      case Boolean truth -> JSON.booleanNode(truth);
      case byte[] bytes ->
          JSON.textNode(new String(bytes, java.nio.charset.StandardCharsets.UTF_8));
      case PqStruct struct -> object(struct);
      case PqList list -> {
        var array = JSON.arrayNode(list.size());
        for (int i = 0; i < list.size(); i++) {
          array.add(list.isNull(i) ? JSON.nullNode() : value(list.get(i)));
        }
        yield array;
      }
      default -> JSON.textNode(value.toString());
    };
  }
}
