package org.meteora.data.source;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import com.fasterxml.jackson.databind.JsonNode;
import dev.hardwood.InputFile;
import dev.hardwood.metadata.ColumnChunk;
import dev.hardwood.metadata.ColumnMetaData;
import dev.hardwood.metadata.FileMetaData;
import dev.hardwood.metadata.RowGroup;
import dev.hardwood.reader.ParquetFileReader;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.LockSupport;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.meteora.UserException;
import org.meteora.data.Sample;
import org.meteora.data.tasks.Tasks;

/** Files written by pyarrow: see make_parquet.py beside them. */
class ParquetRecordsTest {
  @TempDir Path folder;

  private Path put(String resource, String name) throws IOException {
    var file = folder.resolve("sources").resolve(name);
    Files.createDirectories(file.getParent());
    try (var in = ParquetRecordsTest.class.getResourceAsStream(resource)) {
      Files.write(file, in.readAllBytes());
    }
    return file;
  }

  private static List<JsonNode> read(Path file) {
    var result = new ArrayList<JsonNode>();
    new ParquetRecords(file).forEach((node, where) -> result.add(node));
    return result;
  }

  @ParameterizedTest
  @ValueSource(strings = {"snappy", "zstd", "gzip", "none"})
  void readsListsFromSeveralRowGroupsInEveryCodec(String codec) throws IOException {
    var records = read(put("bigbench-" + codec + ".parquet", codec + ".parquet"));
    assertThat(records).hasSize(50);
    for (int i = 0; i < 50; i++) {
      var record = records.get(i);
      assertThat(record.get("idx").intValue()).isEqualTo(i);
      assertThat(record.get("inputs").textValue()).startsWith("Record " + i + ": ");
      assertThat(record.get("targets").get(0).textValue()).isEqualTo("answer " + i);
      var choices = record.get("multiple_choice_targets");
      assertThat(choices.isArray()).isTrue();
      assertThat(choices.size()).isEqualTo(i % 5 == 4 ? 0 : 1 + i % 4);
      for (var choice : choices) {
        assertThat(choice.textValue()).startsWith("The ").endsWith(" " + i + ".");
      }
      assertThat(record.get("multiple_choice_scores").size()).isEqualTo(choices.size());
    }
    assertThat(records.toString()).contains("🦉", "鸟");
  }

  @Test
  void readsTranslationStructs() throws IOException {
    put("translation.parquet", "news_commentary/de-en/train-00000-of-00001.parquet");
    var task = Tasks.get("news_commentary_de");
    var written = make("news_commentary_de", "datasets");
    assertThat(written.train()).isEqualTo(8);
    assertThat(written.test()).isEqualTo(2);
    assertThat(samples("datasets", task.name(), "test"))
        .allSatisfy(
            sample -> {
              assertThat(sample.prompt())
                  .matches(
                      "\\[INST] Den folgenden Text ins Englische übersetzen\\.\n"
                          + "Satz \\d für alle \\[/INST]\n");
              assertThat(sample.response()).matches("Sentence \\d for all");
            });
  }

  @Test
  void nullsAreNullsEverywhere() throws IOException {
    var file = put("bigbench-nulls.parquet", "nulls.parquet");
    var records = read(file);
    assertThat(records).hasSize(4);
    assertThat(records.get(0).get("multiple_choice_targets").isNull()).isTrue();
    assertThat(records.get(1).get("multiple_choice_targets").toString())
        .isEqualTo("[\"a\",null,\"\"]");
    assertThat(records.get(2).get("targets").toString()).isEqualTo("[null]");
    assertThat(records.get(3).get("inputs").isNull()).isTrue();
    assertThat(records.get(3).get("idx").isNull()).isTrue();
    Files.createDirectories(folder.resolve("sources/winowhy"));
    for (var split : List.of("train", "validation")) {
      Files.copy(file, folder.resolve("sources/winowhy/" + split + ".parquet"));
    }
    assertThatThrownBy(() -> make("winowhy", "datasets"))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("train.parquet: row 3")
        .hasMessageContaining("\"targets\"");
  }

  @Test
  void readsGsm8kAndAlpacaWhereAMissingInputIsAnEmptyOne() throws IOException {
    put("gsm8k.parquet", "gsm8k/main/train-00000-of-00001.parquet");
    put("gsm8k.parquet", "gsm8k/main/test-00000-of-00001.parquet");
    assertThat(make("gsm8k", "datasets").train()).isEqualTo(10);
    assertThat(samples("datasets", "gsm8k", "test").get(4))
        .isEqualTo(new Sample("[INST] How much is 4 + 1? 🦉 [/INST]\n", "4 + 1 = 5\n#### 5"));
    put("alpaca.parquet", "alpaca/data/train-00000-of-00001.parquet");
    make("alpaca", "datasets");
    var all = new ArrayList<>(samples("datasets", "alpaca", "train"));
    all.addAll(samples("datasets", "alpaca", "test"));
    assertThat(all)
        .hasSize(10)
        .contains(
            new Sample("[INST] Do 3.\n [/INST]\n", "Done 3."),
            new Sample("[INST] Do 4.\n [/INST]\n", "Done 4."),
            new Sample("[INST] Do 5.\nwith 5 [/INST]\n", "Done 5."));
  }

  /** The process of the test below. */
  static final class Child {
    public static void main(String[] args) {
      var task = Tasks.get("disfl_qa");
      var source = new SourceLocator(Path.of(args[0])).find(task).orElseThrow();
      var written = new DatasetMaker(Path.of(args[1]), 42).make(task, source);
      System.out.println(written.train());
    }
  }

  @Test
  void hundredThousandRecordsInAHeapOf256MiB() throws Exception {
    var shard = put("bigbench-2000.parquet", "disfl_qa/train-00000-of-00050.parquet");
    for (int i = 1; i < 50; i++) {
      Files.copy(shard, shard.resolveSibling(String.format("train-%05d-of-00050.parquet", i)));
    }
    Files.copy(shard, shard.resolveSibling("validation-00000-of-00001.parquet"));
    var child =
        new ProcessBuilder(
                ProcessHandle.current().info().command().orElse("java"),
                "-Xmx256m",
                "-XX:+UseSerialGC",
                "--enable-native-access=ALL-UNNAMED",
                "-cp",
                System.getProperty("java.class.path"),
                Child.class.getName(),
                folder.resolve("sources").toString(),
                folder.resolve("small").toString())
            .redirectErrorStream(true)
            .start();
    var output = new String(child.getInputStream().readAllBytes(), UTF_8);
    assertThat(child.waitFor()).as(output).isZero();
    assertThat(output.strip()).endsWith("100000");
  }

  /** 100,000 records in several files and row groups, the same bytes twice, each time soon. */
  @Test
  void hundredThousandRecords() throws IOException {
    var shard = put("bigbench-2000.parquet", "disfl_qa/train-00000-of-00051.parquet");
    for (int i = 1; i < 51; i++) {
      Files.copy(shard, shard.resolveSibling(String.format("train-%05d-of-00051.parquet", i)));
    }
    Files.copy(shard, shard.resolveSibling("validation-00000-of-00001.parquet"));
    var first = make("disfl_qa", "once");
    assertThat(first.train()).as("at most 100,000 of the 102,000").isEqualTo(100_000);
    assertThat(first.test()).isEqualTo(2000);
    assertThat(make("disfl_qa", "twice")).isEqualTo(first);
    assertThat(folder.resolve("once/disfl_qa/train.jsonl"))
        .hasSameBinaryContentAs(folder.resolve("twice/disfl_qa/train.jsonl"));
  }

  @Test
  void brokenFilesAreAnErrorThatNamesThem() throws IOException {
    var whole = Files.readAllBytes(put("bigbench-snappy.parquet", "whole.parquet"));
    var random = new Random(1);
    for (int i = 0; i < 200; i++) {
      var broken = whole.clone();
      if (i % 2 == 0) {
        broken = java.util.Arrays.copyOf(whole, random.nextInt(whole.length));
      } else {
        for (int n = 0; n < 8; n++) {
          broken[random.nextInt(broken.length)] = (byte) random.nextInt();
        }
      }
      // a file of its own: the reader maps files, and one must not shrink while it is mapped
      var file = Files.write(folder.resolve("broken-" + i + ".parquet"), broken);
      try {
        read(file); // a flipped letter is still a Parquet file
        assertThat(i % 2).as("a truncated file was read").isEqualTo(1);
      } catch (UserException e) {
        assertThat(e.getMessage()).startsWith(file.toString()).doesNotContain("\n");
      }
    }
    var empty = Files.write(folder.resolve("empty.parquet"), new byte[0]);
    assertThatThrownBy(() -> read(empty))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("empty.parquet");
  }

  /** A page header that the library would go round in for ever. */
  @Test
  void aFileThatHangsIsRefused() {
    var file =
        Path.of(System.getProperty("meteora.root", ".."))
            .resolve("../shared/fixtures/field/hostile/hangs.parquet");
    assumeTrue(Files.exists(file), "no file at " + file);
    assertThatThrownBy(() -> read(file))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("hangs.parquet: not a readable Parquet file (row 0): the column ");
  }

  private static void readWithin(Duration limit, ParquetInput input, Path file) {
    new ParquetRecords(file).forEach(input, (read, footer) -> {}, limit, (node, where) -> {});
  }

  /** The process of the test below: the library's thread goes on for ever. */
  static final class Hanging {
    public static void main(String[] args) {
      var file = Path.of(args[0]);
      try {
        readWithin(Duration.ofSeconds(1), new ParquetInput(file), file);
      } catch (UserException e) {
        System.out.println(e.getMessage());
        System.exit(2);
      }
    }
  }

  /** The same where nothing has looked at the pages before: the library goes round and round. */
  @Test
  void aHangThatNoCheckKnowsEndsSoon() throws Exception {
    var hangs =
        Path.of(System.getProperty("meteora.root", ".."))
            .resolve("../shared/fixtures/field/hostile/hangs.parquet");
    assumeTrue(Files.exists(hangs), "no file at " + hangs);
    var child =
        new ProcessBuilder(
                ProcessHandle.current().info().command().orElse("java"),
                "-XX:+UseSerialGC",
                "--enable-native-access=ALL-UNNAMED",
                "-cp",
                System.getProperty("java.class.path"),
                Hanging.class.getName(),
                hangs.toString())
            .redirectErrorStream(true)
            .start();
    var output = new String(child.getInputStream().readAllBytes(), UTF_8);
    assertThat(child.waitFor()).as(output).isEqualTo(2);
    assertThat(output.strip())
        .endsWith("hangs.parquet: not a readable Parquet file: its reader hangs after row 0");
  }

  @Test
  void aReaderThatWaitsForEverIsGivenUpAndASlowDiskIsNot() throws IOException {
    var file = put("bigbench-none.parquet", "waits.parquet");
    var waits =
        new ParquetInput(file) {
          @Override
          public long length() {
            LockSupport.parkNanos(TimeUnit.SECONDS.toNanos(20));
            throw new IllegalStateException("nobody waits for this any more");
          }
        };
    assertThatThrownBy(() -> readWithin(Duration.ofSeconds(1), waits, file))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("hangs after row 0");
    var slow =
        new ParquetInput(file) {
          private int pieces;

          @Override
          void arrived(int n) throws IOException {
            super.arrived(n);
            if (++pieces <= 2) {
              LockSupport.parkNanos(TimeUnit.MILLISECONDS.toNanos(1500));
            }
          }
        };
    readWithin(Duration.ofSeconds(1), slow, file);
    assertThat(slow.bytes()).isGreaterThan(Files.size(file) / 2);
  }

  @Test
  void aFileThatIsCutShortWhileItIsReadIsRefused() throws IOException {
    var file = put("bigbench-2000.parquet", "shrinks.parquet");
    assertThatThrownBy(
            () ->
                readWithin(
                    Duration.ofSeconds(4),
                    new ParquetInput(file) {
                      @Override
                      void arrived(int n) throws IOException {
                        super.arrived(n);
                        if (bytes() > 1000) {
                          Files.write(file, new byte[10]);
                        }
                      }
                    },
                    file))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("shrinks.parquet: not a readable Parquet file");
  }

  /** 20 KB of zstd that unpack to 300 MB. */
  @Test
  void aPageThatUnpacksToMuchMoreThanAPageIsRefused() throws IOException {
    var file = put("bomb.parquet", "bomb.parquet");
    assertThatThrownBy(() -> read(file))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("the column inputs: ")
        .hasMessageContaining("unpacks to 3000");
  }

  @Test
  void aFooterThatDisagreesWithThePagesIsRefused() throws IOException {
    var file = put("bigbench-none.parquet", "footer.parquet");
    FileMetaData footer;
    try (var reader = ParquetFileReader.open(InputFile.of(file))) {
      footer = reader.getFileMetaData();
    }
    check(file, footer);
    var group = footer.rowGroups().getFirst();
    long rows = group.numRows();
    refused(file, withRows(footer, footer.numRows() + 1, group), "its footer says 51");
    var more = new RowGroup(group.columns(), group.totalByteSize(), rows + 1000);
    refused(file, withRows(footer, footer.numRows() + 1000, more), " rows");
    var negative = new RowGroup(group.columns(), group.totalByteSize(), -1);
    refused(file, withRows(footer, footer.numRows(), negative), "-1 rows");
    var none = new RowGroup(List.of(), group.totalByteSize(), rows);
    refused(file, withRows(footer, footer.numRows(), none), "without columns");
    for (var sizes : new long[][] {{Long.MAX_VALUE, 4}, {1 << 20, 4}, {-5, 4}, {200, -9}}) {
      var column = group.columns().getFirst();
      var data = column.metaData();
      var wrong =
          new ColumnMetaData(
              data.type(),
              data.encodings(),
              data.pathInSchema(),
              data.codec(),
              data.numValues(),
              data.totalUncompressedSize(),
              sizes[0],
              data.keyValueMetadata(),
              sizes[1],
              null,
              data.statistics(),
              null,
              null,
              null);
      var columns = List.of(new ColumnChunk(wrong, null, null, null, null));
      var other = new RowGroup(columns, group.totalByteSize(), rows);
      refused(file, withRows(footer, footer.numRows(), other), "");
    }
  }

  private static void check(Path file, FileMetaData footer) throws IOException {
    try (var input = InputFile.of(file)) {
      input.open();
      ParquetPages.check(input, footer);
    }
  }

  private static FileMetaData withRows(FileMetaData footer, long rows, RowGroup first) {
    var groups = new ArrayList<>(footer.rowGroups());
    groups.set(0, first);
    return new FileMetaData(
        footer.version(),
        footer.schema(),
        rows,
        groups,
        footer.keyValueMetadata(),
        footer.createdBy(),
        footer.columnOrders());
  }

  private static void refused(Path file, FileMetaData footer, String message) {
    assertThatThrownBy(() -> check(file, footer))
        .isInstanceOf(IOException.class)
        .hasMessageContaining(message);
  }

  /** Snappy's library would write beyond the room that the page's header asks for. */
  @Test
  void aPageThatUnpacksToMoreThanItsHeaderSaysIsRefused() throws IOException {
    var file = put("gsm8k.parquet", "wrong.parquet");
    var bytes = Files.readAllBytes(file);
    assertThat(bytes).startsWith('P', 'A', 'R', '1', 0x15, 0x04, 0x15, 0x9c, 0x04); // 270 bytes
    bytes[7] = (byte) 0x84;
    bytes[8] = 0x03; // 194
    Files.write(file, bytes);
    assertThatThrownBy(() -> new ParquetRecords(file).forEach((node, where) -> {}))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("said to unpack to 194 bytes unpacks to 270");
  }

  @Test
  void whatTheReaderOfRowsThrowsReachesTheCaller() throws IOException {
    var file = put("bigbench-none.parquet", "stop.parquet");
    assertThatThrownBy(
            () ->
                new ParquetRecords(file)
                    .forEach(
                        (node, where) -> {
                          throw new UserException("stop at " + where);
                        }))
        .isInstanceOf(UserException.class)
        .hasMessage("stop at " + file + ": row 1");
  }

  private DatasetMaker.Written make(String task, String target) {
    var source = new SourceLocator(folder.resolve("sources")).find(Tasks.get(task));
    return new DatasetMaker(folder.resolve(target), 42).make(Tasks.get(task), source.orElseThrow());
  }

  private List<Sample> samples(String target, String task, String split) {
    return Sample.read(folder.resolve(target).resolve(task).resolve(split + ".jsonl"));
  }
}
