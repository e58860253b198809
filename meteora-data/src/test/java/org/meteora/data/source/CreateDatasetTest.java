package org.meteora.data.source;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.UserException;
import org.meteora.data.Sample;
import org.meteora.data.command.CreateDatasetCommand;
import org.meteora.data.tasks.DatasetMaker;
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
    try (var left = Files.list(folder.resolve("datasets/winowhy"))) {
      assertThat(left).isEmpty();
    }
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
    var command = new CommandLine(new CreateDatasetCommand(() -> SourceFetcher.NONE));
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
}
