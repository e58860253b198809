package org.meteora.data.source;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.meteora.UserException;
import org.meteora.data.Sample;
import org.meteora.data.tasks.DatasetMaker;
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

  /** 100,000 records in several files and row groups, the same bytes twice, each time soon. */
  @Test
  void hundredThousandRecordsInTime() throws IOException {
    var shard = put("bigbench-2000.parquet", "disfl_qa/train-00000-of-00051.parquet");
    for (int i = 1; i < 51; i++) {
      Files.copy(shard, shard.resolveSibling(String.format("train-%05d-of-00051.parquet", i)));
    }
    Files.copy(shard, shard.resolveSibling("validation-00000-of-00001.parquet"));
    long start = System.nanoTime();
    var first = make("disfl_qa", "once");
    double seconds = (System.nanoTime() - start) / 1e9;
    assertThat(first.train()).as("at most 100,000 of the 102,000").isEqualTo(100_000);
    assertThat(first.test()).isEqualTo(2000);
    assertThat(seconds).isLessThan(10);
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

  private DatasetMaker.Written make(String task, String target) {
    var source = new SourceLocator(folder.resolve("sources"), 42).find(Tasks.get(task));
    return new DatasetMaker(folder.resolve(target), 42).make(Tasks.get(task), source.orElseThrow());
  }

  private List<Sample> samples(String target, String task, String split) {
    return Sample.read(folder.resolve(target).resolve(task).resolve(split + ".jsonl"));
  }
}
