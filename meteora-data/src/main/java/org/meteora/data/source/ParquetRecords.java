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
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.function.BiConsumer;
import java.util.logging.Level;
import java.util.logging.Logger;
import org.meteora.UserException;

/**
 * A Parquet file, row by row as JSON objects; lists and structs nested. Memory holds a row group at
 * a time, whatever the size of the file. The file is mapped: it must not be cut short meanwhile.
 * What its footer and pages say of sizes is checked first ({@link ParquetPages}).
 */
record ParquetRecords(Path file) implements Records {
  private static final JsonNodeFactory JSON = JsonNodeFactory.instance;

  /** Kept, or the level would be forgotten: the library tells at every start what it found. */
  private static final Logger LIBRARY = Logger.getLogger("dev.hardwood");

  static {
    LIBRARY.setLevel(Level.WARNING);
  }

  /** No row for so long, and the file is given up. */
  private static final Duration DEADLINE = Duration.ofSeconds(30);

  /** Rows that are handed over together. */
  private static final int BATCH = 64;

  private static final int BATCHES_AHEAD = 4;

  /** What the reading thread hands over: some rows, or how it ended. */
  private sealed interface Step {
    record Rows(List<JsonNode> nodes) implements Step {}

    record End(Optional<Throwable> failure) implements Step {}
  }

  /**
   * A thread of its own reads, so that one that hangs in a broken file does not take the program
   * with it.
   */
  @Override
  public void forEach(BiConsumer<JsonNode, String> each) {
    var steps = new ArrayBlockingQueue<Step>(BATCHES_AHEAD);
    var thread = Thread.ofPlatform().daemon().name("parquet").unstarted(() -> read(steps));
    thread.start();
    long row = 0;
    try {
      while (true) {
        switch (steps.poll(DEADLINE.toMillis(), TimeUnit.MILLISECONDS)) {
          case Step.Rows(var nodes) -> {
            for (var node : nodes) {
              each.accept(node, file + ": row " + ++row);
            }
          }
          case Step.End(var failure) -> {
            if (failure.isPresent()) {
              throw failed(failure.get(), row);
            }
            return;
          }
          case null ->
              throw new UserException(
                  file
                      + ": not a readable Parquet file: nothing came after row "
                      + row
                      + " for "
                      + DEADLINE.toSeconds()
                      + " s");
        }
      }
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new UserException("interrupted while reading " + file, e);
    } finally {
      thread.interrupt();
    }
  }

  private void read(BlockingQueue<Step> steps) {
    try {
      Step end;
      try {
        rows(steps);
        end = new Step.End(Optional.empty());
      } catch (IOException
          | RuntimeException
          | OutOfMemoryError
          | StackOverflowError
          | InternalError e) {
        end = new Step.End(Optional.of(e));
      }
      steps.put(end);
    } catch (InterruptedException e) {
      // nobody waits for the rest
    }
  }

  private void rows(BlockingQueue<Step> steps) throws IOException, InterruptedException {
    try (var reader = ParquetFileReader.open(InputFile.of(file))) {
      ParquetPages.check(file, reader.getFileMetaData());
      // one reader for each row group: a single one decodes many of them ahead
      for (var group : reader.getFileMetaData().rowGroups()) {
        long start = group.columns().getFirst().chunkStartOffset();
        long end =
            start
                + group.columns().stream().mapToLong(c -> c.metaData().totalCompressedSize()).sum();
        long row = 0;
        var batch = new ArrayList<JsonNode>(BATCH);
        try (var rows =
            reader.buildRowReader().filter(RowGroupPredicate.byteRange(start, end)).build()) {
          while (row <= group.numRows() && rows.hasNext()) {
            rows.next();
            row++;
            batch.add(object(rows));
            if (batch.size() == BATCH) {
              steps.put(new Step.Rows(batch));
              batch = new ArrayList<>(BATCH);
            }
          }
        }
        steps.put(new Step.Rows(batch));
        if (row != group.numRows()) {
          throw new IOException(
              "a row group holds "
                  + (row > group.numRows() ? "more" : row)
                  + " rows, its footer says "
                  + group.numRows());
        }
      }
    }
  }

  private UserException failed(Throwable e, long row) {
    var cause = e; // the reader's own threads wrap what went wrong
    while (cause.getCause() != null) {
      cause = cause.getCause();
    }
    if (cause instanceof OutOfMemoryError) {
      return new UserException(
          file + ": out of memory: its row groups need a larger heap (java -Xmx)", e);
    }
    var message = (e instanceof IOException ? e : cause).getMessage();
    return new UserException(
        file
            + ": not a readable Parquet file (row "
            + row
            + "): "
            + (message == null ? "damaged data" : message.lines().findFirst().orElse("")),
        e);
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
