package org.meteora.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.meteora.io.FolderLock;

/** A folder that one run writes its result into is refused to another, which leaves it as it is. */
class OneRunAtATimeTest {
  private static final Path ROOT =
      Path.of(System.getProperty("meteora.root", "..")).toAbsolutePath().normalize();
  private static final Path TINY = ROOT.resolve("configs/tiny");

  @TempDir Path folder;

  private void oneAtATime(Path output, String... arguments) throws Exception {
    var error = new StringWriter();
    var command =
        Main.commandLine()
            .setOut(new PrintWriter(new StringWriter()))
            .setErr(new PrintWriter(error, true));
    try (var other = FolderLock.takeOutput(output)) {
      assertThat(command.execute(arguments)).isEqualTo(2);
      try (Stream<Path> left = Files.list(output)) {
        assertThat(left.toList()).containsExactly(output.resolve(FolderLock.NAME));
      }
    }
    assertThat(error.toString().strip())
        .endsWith(
            "another run is writing into "
                + output
                + "; wait until it is done, or choose another folder (process "
                + ProcessHandle.current().pid()
                + ")")
        .doesNotContain("\n");
    error.getBuffer().setLength(0);
    assertThat(command.execute(arguments)).as(error::toString).isZero();
    try (Stream<Path> made = Files.list(output)) {
      assertThat(made.toList()).hasSizeGreaterThan(2);
    }
  }

  @Test
  void createDataset() throws Exception {
    var sources = ROOT.resolve("meteora-data/src/test/resources/org/meteora/data/source");
    var winowhy = Files.createDirectories(folder.resolve("sources/winowhy"));
    Files.copy(sources.resolve("bigbench/flat/task.json"), winowhy.resolve("task.json"));
    oneAtATime(
        folder.resolve("data/winowhy"),
        "create-dataset",
        "--offline",
        "--task=winowhy",
        "--bigbench-dataset-dir=" + folder.resolve("sources"),
        "--target-dir=" + folder.resolve("data"));
  }

  @Test
  void createComposite() throws Exception {
    var data = folder.resolve("data");
    for (var task : new String[] {"sort_letters", "count_vowels"}) {
      for (var file : new String[] {"train.jsonl", "test.jsonl"}) {
        Files.createDirectories(data.resolve(task));
        Files.copy(
            TINY.resolve("datasets").resolve(task).resolve(file), data.resolve(task).resolve(file));
      }
    }
    oneAtATime(
        data.resolve("composite_2"),
        "create-composite",
        "--tasks=sort_letters,count_vowels",
        "--nums=3",
        "--target-dir=" + data);
  }

  @Test
  void merge() throws Exception {
    oneAtATime(
        folder.resolve("merged"),
        "merge",
        "--method=cat",
        "--adapter-dir=" + TINY.resolve("adapters"),
        "--tasks=sort_letters,count_vowels",
        "--output-dir=" + folder.resolve("merged"));
  }

  /** Each is refused after it has looked at its output folder, which was not there. */
  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "merge --method=cat --tasks=sort_letters,no_such | no_such",
        "train --target-dir=/dev/null/none | has no training data",
        "train --resume | there is no checkpoint",
        "train-lora --task=sort_letters --layers-to-transform=99 | there is no layer 99",
        "eval --task=sort_letters --model=no_such | no adapter no_such"
      })
  void whatIsRefusedLeavesNothing(String command, String why) throws Exception {
    var error = new StringWriter();
    var arguments = new ArrayList<>(List.of(command.split(" ")));
    arguments.add(1, "--config=" + TINY.resolve("config.yaml"));
    arguments.add("--adapter-dir=" + TINY.resolve("adapters"));
    if (!command.startsWith("merge")) {
      arguments.add(2, "--base-model-path=" + TINY.resolve("base"));
      if (!command.contains("--target-dir")) {
        arguments.add(2, "--target-dir=" + TINY.resolve("datasets"));
      }
    }
    arguments.add(
        (command.startsWith("eval") ? "--eval-result-save-dir=" : "--output-dir=")
            + folder.resolve("new/output"));
    int code =
        Main.commandLine()
            .setErr(new PrintWriter(error, true))
            .execute(arguments.toArray(String[]::new));
    assertThat(code).as(error::toString).isEqualTo(2);
    assertThat(error.toString()).contains(why);
    assertThat(folder).isEmptyDirectory();
  }
}
