package org.meteora.data.source;

import static java.nio.charset.StandardCharsets.UTF_8;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import dev.hardwood.InputFile;
import dev.hardwood.metadata.FileMetaData;
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
 * a time, whatever the size of the file. What its footer and pages say of sizes is checked first
 * ({@link ParquetPages}).
 */
record ParquetRecords(Path file) implements Records {
  private static final JsonNodeFactory JSON = JsonNodeFactory.instance;

  /** Kept, or the level would be forgotten: the library tells at every start what it found. */
  private static final Logger LIBRARY = Logger.getLogger("dev.hardwood");

  static {
    LIBRARY.setLevel(Level.WARNING);
  }

  /** Work, or nothing at all, that may go by without a row until the file is given up. */
  private static final Duration LIMIT = Duration.ofSeconds(4);

  /** Bytes that the slowest codec unpacks in a second, and less. */
  private static final long BYTES_A_SECOND = 16 << 20;

  private static final Duration LOOK = Duration.ofMillis(250);

  /** A share of the processor that a thread which works gets even where much else runs: 1 %. */
  private static final int IDLE = 100;

  /** Rows that are handed over together. */
  private static final int BATCH = 64;

  private static final int BATCHES_AHEAD = 4;

  /** What the reading thread hands over: some rows, or how it ended. */
  private sealed interface Step {
    record Rows(List<JsonNode> nodes) implements Step {}

    record End(Optional<Throwable> failure) implements Step {}
  }

  @Override
  public void forEach(BiConsumer<JsonNode, String> each) {
    forEach(new ParquetInput(file), ParquetPages::check, LIMIT, each);
  }

  /** What is looked at before rows are read. */
  @FunctionalInterface
  interface Check {
    void accept(InputFile input, FileMetaData footer) throws IOException;
  }

  /**
   * A thread of its own reads, so that one that hangs in a broken file does not take the program
   * with it.
   */
  void forEach(ParquetInput input, Check check, Duration limit, BiConsumer<JsonNode, String> each) {
    var steps = new ArrayBlockingQueue<Step>(BATCHES_AHEAD);
    var thread =
        Thread.ofPlatform().daemon().name("parquet").unstarted(() -> read(input, check, steps));
    thread.start();
    long row = 0;
    try {
      while (true) {
        switch (next(steps, input, limit)) {
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
                  file + ": not a readable Parquet file: its reader hangs after row " + row);
        }
      }
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new UserException("interrupted while reading " + file, e);
    } finally {
      thread.interrupt();
    }
  }

  /**
   * The next step; null when the reader hangs. A disk may take its time, and so may a machine with
   * other work: what counts is processor time beyond what bytes of the file are worth, or that
   * nothing is read and nothing computed.
   */
  private static Step next(BlockingQueue<Step> steps, ParquetInput input, Duration limit)
      throws InterruptedException {
    long bytes = input.bytes();
    var start = computed();
    var before = start;
    long since = System.nanoTime();
    while (true) {
      var step = steps.poll(LOOK.toMillis(), TimeUnit.MILLISECONDS);
      if (step != null) {
        return step;
      }
      var now = computed();
      long read = Math.min(input.bytes() - bytes, input.size()); // round and round is worth nothing
      if (now.minus(start).minus(limit).toNanos() > read * 1e9 / BYTES_A_SECOND) {
        return null;
      }
      var waited = Duration.ofNanos(System.nanoTime() - since);
      if (input.isReading() || waited.compareTo(limit) > 0) {
        if (!input.isReading() && now.minus(before).multipliedBy(IDLE).compareTo(waited) < 0) {
          return null;
        }
        since = System.nanoTime();
        before = now;
      }
    }
  }

  private static Duration computed() {
    return ProcessHandle.current().info().totalCpuDuration().orElse(Duration.ZERO);
  }

  private static void read(ParquetInput input, Check check, BlockingQueue<Step> steps) {
    try {
      var failure = Optional.<Throwable>empty();
      try {
        rows(input, check, steps);
      } catch (IOException | RuntimeException | VirtualMachineError e) {
        failure = Optional.of(e);
      }
      steps.put(new Step.End(failure));
    } catch (InterruptedException e) {
      // nobody waits for the rest
    }
  }

  private static void rows(ParquetInput input, Check check, BlockingQueue<Step> steps)
      throws IOException, InterruptedException {
    try (input;
        var reader = ParquetFileReader.open(input)) {
      check.accept(input, reader.getFileMetaData());
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
              "a row group holds %s rows, its footer says %s"
                  .formatted(row > group.numRows() ? "more" : row, group.numRows()));
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
        "%s: not a readable Parquet file (row %s): %s",
        file, row, message == null ? "damaged data" : message.lines().findFirst().orElse(""), e);
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
      case byte[] bytes -> JSON.textNode(new String(bytes, UTF_8));
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
