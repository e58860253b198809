package org.meteora.data.source;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.meteora.UserException;
import org.meteora.data.Sample;
import org.meteora.data.command.CreateDatasetCommand;
import org.meteora.data.tasks.MetricsFile;
import org.meteora.data.tasks.Tasks;
import picocli.CommandLine;

class CreateDatasetTest {
  @TempDir Path folder;

  private Path put(String name, String text) throws IOException {
    var file = folder.resolve("sources").resolve(name);
    Files.createDirectories(file.getParent());
    return Files.writeString(file, text);
  }

  private Sample firstTest(String task) {
    var source = new SourceLocator(folder.resolve("sources")).find(Tasks.get(task)).orElseThrow();
    new DatasetMaker(folder.resolve("datasets"), 42).make(Tasks.get(task), source);
    return Sample.read(folder.resolve("datasets").resolve(task).resolve("test.jsonl")).getFirst();
  }

  @Test
  void bigbenchAsJsonl() throws IOException {
    var record =
        "{\"inputs\":\"Three birds.\",\"targets\":[\"The owl.\"],\"multiple_choice_targets\":[\"The"
            + " owl.\",\"The robin.\"],\"multiple_choice_scores\":[1,0],\"idx\":0}\n";
    put("logical_deduction/train.jsonl", record);
    put("logical_deduction/validation.jsonl", record);
    assertThat(firstTest("logical_deduction"))
        .isEqualTo(
            new Sample(
                "[INST] Three birds. Which choice is correct?\n"
                    + "choice: The owl.\n"
                    + "choice: The robin.\n"
                    + " [/INST]\n",
                "The owl."));
    put("unit_conversion/train.jsonl", record);
    put("unit_conversion/validation.jsonl", record);
    assertThat(firstTest("unit_conversion").prompt())
        .isEqualTo("[INST] Three birds.\nchoice: The owl.\nchoice: The robin.\n [/INST]\n");
    put("winowhy/train.jsonl", record);
    put("winowhy/validation.jsonl", record);
    assertThat(firstTest("winowhy").prompt()).isEqualTo("[INST] Three birds. [/INST]\n");
  }

  @Test
  void bigbenchAsTaskJson() throws IOException {
    var examples = new StringBuilder();
    for (int i = 0; i < 40; i++) {
      examples
          .append(i == 0 ? "" : ",")
          .append("{\"input\":\"i" + i + "\",\"target_scores\":{\"yes\":1,\"no\":0}}");
    }
    var json =
        "{\"task_prefix\":\"P. \",\"example_input_prefix\":\"\\n"
            + "Q: \",\"example_output_prefix\":\"\\n"
            + "A: \",\"choice_prefix\":\"\\n"
            + " ~ \",\"examples\":["
            + examples
            + "]}";
    put("winowhy/one/task.json", json);
    put(
        "winowhy/two/task.json",
        json.replace("\"task_prefix\"", "\"append_choices_to_input\":false,\"task_prefix\""));
    var first = firstTest("winowhy");
    // two sub-tasks: eight for validation of each
    assertThat(first.prompt()).matches("\\[INST] P\\. \nQ: i\\d+\n ~ yes\n ~ no\nA: \\[/INST]\n");
    assertThat(first.response()).isEqualTo("yes");
    var train = Sample.read(folder.resolve("datasets/winowhy/train.jsonl"));
    var test = Sample.read(folder.resolve("datasets/winowhy/test.jsonl"));
    assertThat(train).hasSize(64).doesNotContainAnyElementsOf(test);
    assertThat(test).hasSize(16);
    assertThat(test.getLast().prompt()).matches("\\[INST] P\\. \nQ: i\\d+\nA: \\[/INST]\n");
  }

  @Test
  void huggingFaceSources() throws IOException {
    put("gsm8k/main/train-00000-of-00001.jsonl", "{\"question\":\"q\",\"answer\":\"#### 1\"}\n");
    put("gsm8k/main/test.json", "[{\"question\":\"t\",\"answer\":\"#### 2\"}]");
    assertThat(firstTest("gsm8k")).isEqualTo(new Sample("[INST] t [/INST]\n", "#### 2"));
    var lines = new StringBuilder();
    for (int i = 0; i < 10; i++) {
      lines.append("{\"translation\":{\"de\":\"eins " + i + "\",\"en\":\"one\"}}\n");
    }
    put("news_commentary/de-en/train.jsonl", lines.toString());
    assertThat(firstTest("news_commentary_de").prompt())
        .startsWith("[INST] Den folgenden Text ins Englische übersetzen.\neins ");
    assertThat(Sample.read(folder.resolve("datasets/news_commentary_de/train.jsonl"))).hasSize(8);
    put(
        "alpaca/train.jsonl",
        "{\"instruction\":\"a\",\"input\":\"b\",\"output\":\"c\"}\n".repeat(5));
    assertThat(firstTest("alpaca")).isEqualTo(new Sample("[INST] a\nb [/INST]\n", "c"));
    put(
        "alpaca/train.jsonl",
        "{\"instruction\":\"a\",\"input\":\"\",\"output\":\"c\"}\n".repeat(5));
    assertThat(firstTest("alpaca")).isEqualTo(new Sample("[INST] a\n [/INST]\n", "c"));
    put("cnn_dailymail/3.0.0/train.jsonl", "{\"article\":\"a\",\"highlights\":\"h\"}\n");
    put("cnn_dailymail/3.0.0/test.jsonl", "{\"article\":\"a\",\"highlights\":\"h\"}\n");
    assertThat(firstTest("cnn_dailymail").prompt())
        .isEqualTo("[INST] Generate a summarization of the news article.\na [/INST]\n");
  }

  @Test
  void sameInputSameBytesAndBrokenRecordsLeaveNothing() throws IOException {
    var lines = new TreeMap<String, String>(Map.of("a", "x"));
    put("disfl_qa/train.jsonl", "{\"inputs\":\"i\",\"targets\":[\"" + lines.get("a") + "\"]}\n");
    put("disfl_qa/validation.jsonl", "{\"inputs\":\"i\",\"targets\":[\"t\"]}\n");
    var locator = new SourceLocator(folder.resolve("sources"));
    var maker = new DatasetMaker(folder.resolve("datasets"), 42);
    var task = Tasks.get("disfl_qa");
    assertThat(maker.make(task, locator.find(task).orElseThrow()))
        .isEqualTo(maker.make(task, locator.find(task).orElseThrow()));
    put(
        "winowhy/train.jsonl",
        "{\"inputs\":\"i\",\"targets\":[\"t\"]}\n{\"inputs\":\"i\",\"targets\":[]}\n");
    put("winowhy/validation.jsonl", "{\"inputs\":\"i\",\"targets\":[\"t\"]}\n");
    assertThatThrownBy(
            () ->
                maker.make(Tasks.get("winowhy"), locator.find(Tasks.get("winowhy")).orElseThrow()))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("train.jsonl:2");
    assertThat(folder.resolve("datasets/winowhy/train.jsonl")).doesNotExist();
    // a broken test split leaves no train split behind either
    put("winowhy/train.jsonl", "{\"inputs\":\"i\",\"targets\":[\"t\"]}\n");
    put("winowhy/validation.jsonl", "{\"inputs\":\"i\"}\n");
    assertThatThrownBy(
            () ->
                maker.make(Tasks.get("winowhy"), locator.find(Tasks.get("winowhy")).orElseThrow()))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("validation.jsonl:1");
    assertThat(folder.resolve("datasets/winowhy")).doesNotExist();
  }

  @Test
  void findsWhatDownloadPutsSideBySide() throws IOException {
    var bigbench = put("bigbench/winowhy/train.jsonl", "{}").getParent().getParent();
    put("gsm8k/main/train.jsonl", "{}");
    for (var root : List.of(bigbench, folder.resolve("sources"))) {
      var locator = new SourceLocator(root);
      assertThat(locator.find(Tasks.get("winowhy"))).isPresent();
      assertThat(locator.find(Tasks.get("gsm8k"))).isPresent();
      assertThat(locator.find(Tasks.get("alpaca"))).isEmpty();
    }
  }

  @Test
  void allGoesOnPastMissingSources() throws IOException {
    put("alpaca/train.jsonl", "{\"instruction\":\"no output\"}\n".repeat(5));
    put("disfl_qa/train.jsonl", "{\"inputs\":\"i\",\"targets\":[\"t\"]}\n");
    put("disfl_qa/validation.jsonl", "{\"inputs\":\"i\",\"targets\":[\"t\"]}\n");
    var command = new CommandLine(new CreateDatasetCommand(SourceFetcher.NONE));
    var sources = folder.resolve("sources").toString();
    var datasets = folder.resolve("datasets").toString();
    assertThat(
            command.execute(
                "--task", "all", "--bigbench-dataset-dir", sources, "--target-dir", datasets))
        .isEqualTo(1);
    assertThat(folder.resolve("datasets/disfl_qa/test.jsonl")).exists();
    assertThat(
            command.execute(
                "--task", "disfl_qa", "--bigbench-dataset-dir", sources, "--target-dir", datasets))
        .isZero();
  }

  private record Run(int exit, String out, String error) {}

  private Run run(String... arguments) {
    var command = new CommandLine(new CreateDatasetCommand(SourceFetcher.NONE));
    var error = new StringBuilder();
    command.setExecutionExceptionHandler(
        (e, line, result) -> {
          error.append(e.getMessage());
          return 2;
        });
    var before = System.out;
    var out = new ByteArrayOutputStream();
    System.setOut(new PrintStream(out, true, StandardCharsets.UTF_8));
    try {
      var all =
          new ArrayList<>(
              List.of(
                  "--bigbench-dataset-dir",
                  folder.resolve("sources").toString(),
                  "--target-dir",
                  folder.resolve("datasets").toString()));
      all.addAll(List.of(arguments));
      return new Run(
          command.execute(all.toArray(String[]::new)),
          out.toString(StandardCharsets.UTF_8),
          error.toString());
    } finally {
      System.setOut(before);
    }
  }

  private static String taskJson(String settings) {
    var examples =
        IntStream.range(0, 20)
            .mapToObj(i -> "{\"input\":\"i" + i + "\",\"target\":\"t" + i + "\"}")
            .collect(Collectors.joining(","));
    return "{" + settings + "\"examples\":[" + examples + "]}";
  }

  @Test
  void anyTaskOfBigBenchWithItsOwnMetrics() throws IOException {
    // the package's own layout
    put(
        "bigbench/benchmark_tasks/date_understanding/task.json",
        taskJson(
            "\"preferred_score\":\"rougeLsum\",\"metrics\":[\"bleurt\",\"exact_str_match\","
                + "\"rouge\"],"));
    put("bigbench/benchmark_tasks/numbers/task.json", taskJson("\"metrics\":[\"macro_f1\"],"));
    put("bigbench/benchmark_tasks/winowhy/task.json", taskJson(""));
    put("snarks/train.jsonl", "{\"inputs\":\"i\",\"targets\":[\"t\"]}\n");
    put("snarks/validation.jsonl", "{\"inputs\":\"i\",\"targets\":[\"t\"]}\n");
    put("gsm8k/main/train.jsonl", "{\"question\":\"q\",\"answer\":\"a\"}\n");
    var listed = run("--list").out();
    assertThat(listed.lines().limit(Tasks.names().size())).containsExactlyElementsOf(Tasks.names());
    assertThat(listed.lines().skip(Tasks.names().size()))
        .map(line -> line.substring(0, line.indexOf(' ')))
        .containsExactly("date_understanding", "numbers", "snarks");
    assertThat(run("--task", "date_understanding"))
        .extracting(Run::exit, Run::error)
        .containsExactly(0, "");
    var made = folder.resolve("datasets/date_understanding");
    assertThat(Sample.read(made.resolve("test.jsonl"))).hasSize(16);
    assertThat(MetricsFile.read(made)).hasValue(List.of("rouge", "exact_accuracy"));
    var both = run("--task", "numbers,snarks,numbers");
    assertThat(both.exit()).isZero();
    assertThat(both.out().lines()).hasSize(2);
    for (var name : List.of("numbers", "snarks")) {
      assertThat(MetricsFile.read(folder.resolve("datasets").resolve(name)))
          .hasValue(List.of("exact_accuracy"));
    }
    assertThat(run("--task", "winowhy").exit()).isZero();
    assertThat(MetricsFile.read(folder.resolve("datasets/winowhy"))).isEmpty();
  }

  @Test
  void aWrongNameGetsTheNearestOneInWhateverCase() throws IOException {
    put("date_understanding/task.json", taskJson(""));
    assertThat(run("--task", "DATE_UNDERSTANDNG"))
        .extracting(Run::exit, Run::error)
        .containsExactly(
            2, "unknown task \"DATE_UNDERSTANDNG\"; did you mean \"date_understanding\"?");
    assertThat(run("--task", "WINOWHY").error()).endsWith("did you mean \"winowhy\"?");
    assertThat(run("--task", "../date_understanding").error()).startsWith("unknown task");
    assertThat(run("--task", "winowhy,zzzzzzzzzzzz").error())
        .isEqualTo("unknown task \"zzzzzzzzzzzz\"; \"create-dataset --list\" shows them");
    assertThat(run().error()).contains("--task NAME or --list");
    assertThat(run("--list", "--task", "winowhy").error()).contains("--task NAME or --list");
  }

  @ParameterizedTest
  @CsvSource({
    "'[%1$s,%1$s,null,%1$s]', 'record 2 (from 0): a JSON object was expected, found null'",
    "'[%1$s][%1$s]', 'something follows'",
    "'[%1$s] x', 'not valid JSON'",
    "'[%1$s', 'not valid JSON'",
    "'[[%1$s]]', 'record 0 (from 0): a JSON object was expected'",
    "'{\"a\":[%1$s]}', 'the field \"question\" is missing'"
  })
  void aJsonArrayIsReadToItsEndOrNotAtAll(String form, String message) throws IOException {
    put("gsm8k/train.jsonl", "{\"question\":\"q\",\"answer\":\"a\"}\n");
    put("gsm8k/test.json", form.formatted("{\"question\":\"q\",\"answer\":\"a\"}"));
    assertThatThrownBy(() -> firstTest("gsm8k"))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("test.json")
        .hasMessageContaining(message);
    assertThat(folder.resolve("datasets/gsm8k/train.jsonl")).doesNotExist();
  }

  @Test
  void aNullChoiceIsRefusedWithItsLine() throws IOException {
    var record =
        "{\"inputs\":\"i\",\"targets\":[\"t\"],\"multiple_choice_targets\":[\"t\",null]}\n";
    for (var task : List.of("unit_conversion", "logical_deduction")) {
      put(task + "/train.jsonl", record);
      put(task + "/validation.jsonl", record);
      assertThatThrownBy(() -> firstTest(task))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("train.jsonl:1: \"multiple_choice_targets\"");
    }
  }

  @Test
  void byteOrderMarksAndHalfSurrogatePairs() throws IOException {
    put("gsm8k/train.jsonl", "\ufeff{\"question\":\"q\",\"answer\":\"a\"}\n");
    put("gsm8k/test.jsonl", "\ufeff{\"question\":\"a\\ud83eb 🦉\",\"answer\":\"\\udd89\"}\n");
    assertThat(firstTest("gsm8k")).isEqualTo(new Sample("[INST] a\ufffdb 🦉 [/INST]\n", "\ufffd"));
  }
}
