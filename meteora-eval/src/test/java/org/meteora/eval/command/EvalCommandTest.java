package org.meteora.eval.command;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.UserException;
import org.meteora.data.Sample;
import org.meteora.io.Jsonl;
import picocli.CommandLine;

class EvalCommandTest {
  @TempDir Path folder;

  /** Runs the command; a UserException comes through. */
  private static String eval(String... args) {
    var out = new StringWriter();
    var thrown = new ArrayList<Exception>();
    int code =
        new CommandLine(new EvalCommand())
            .setOut(new PrintWriter(out))
            .setExecutionExceptionHandler(
                (e, command, result) -> {
                  thrown.add(e);
                  return 2;
                })
            .execute(args);
    if (!thrown.isEmpty()) {
      throw (RuntimeException) thrown.getFirst();
    }
    assertThat(code).isZero();
    return out.toString();
  }

  private static void refused(String named, String... args) {
    assertThatThrownBy(() -> eval(args))
        .isInstanceOf(UserException.class)
        .hasMessageContaining(named);
  }

  @Test
  void mistakesAreFoundBeforeAModelIsLoaded() {
    refused("--task");
    refused("composite_10", "--task", "composite_1O");
    refused("strategyqa", "--task", "strategyq");
    refused("--limit", "--task", "gsm8k", "--limit", "0");
    refused("--batch-size", "--task", "gsm8k", "--batch-size", "0");
    refused("--seed", "--task", "gsm8k", "--top-p", "0.9");
    refused("--check-batching", "--task=gsm8k", "--sweep=routing_top_k=1", "--check-batching=1");
    refused("no test data for gsm8k", "--task", "gsm8k");
    refused(
        "create-composite",
        "--task=composite_3",
        "--model=base",
        "--base-model-path=" + folder,
        "--target-dir=" + folder);
    refused(
        "--model meteora",
        "--task=object_counting",
        "--routes",
        "--model=base",
        "--base-model-path=" + folder,
        "--target-dir=" + withData());
    refused("no such file", "--rescore", folder.resolve("none.jsonl").toString());
  }

  @Test
  void aModelThatSamplesNeedsASeedBeforeItIsLoaded() throws IOException {
    Files.writeString(folder.resolve("generation_config.json"), "{\"do_sample\": true}");
    refused(
        "needs --seed",
        "--task=object_counting",
        "--model=base",
        "--base-model-path=" + folder,
        "--target-dir=" + withData());
  }

  @Test
  void savedAnswersToACompositeTaskOfOnesOwnAreScoredByItsTasks() throws IOException {
    var answers = folder.resolve("composite_3.answers.jsonl");
    Files.writeString(
        answers,
        "{\"task\":\"composite_3\",\"prompt\":\"p\",\"truth\":\"x@@@@\\ny@@@@\\nz\","
            + "\"decoded\":\"[/INST]\\n1. x\\n2. y\\n3. w\"}\n");
    Files.writeString(
        folder.resolve("composite_3.json"),
        "{\"answers\":\"composite_3.answers.jsonl\",\"settings\":{\"tasks\":[\"größe\",\"b"
            + " c\",\"d\"]}}");
    for (var file : List.of("composite_3.answers.jsonl", "composite_3.json")) {
      assertThat(eval("--rescore", folder.resolve(file).toString()))
          .contains("größe")
          .contains("b c")
          .containsPattern("correct nums\\D+2");
    }
    refused("parts", "--rescore", answers.toString(), "--tasks", "alpaca,gsm8k");
    refused("nothing else", "--rescore", answers.toString(), "--save");
  }

  @Test
  void foldersWithAnyNameAreTasks() {
    Sample.write(folder.resolve("d/sort größe/test.jsonl"), List.of(new Sample("p", "r")));
    refused("base_model_path", "--task=sort größe", "--target-dir=" + folder.resolve("d"));
    refused(
        "create-composite",
        "--task=mine",
        "--tasks=sort größe,alpaca",
        "--model=base",
        "--base-model-path=" + folder,
        "--target-dir=" + folder.resolve("d"));
    refused("unknown task", "--task=../d", "--target-dir=" + folder);
  }

  private Path withData() {
    var datasets = folder.resolve("d");
    Sample.write(datasets.resolve("object_counting/test.jsonl"), List.of(new Sample("p", "r")));
    return datasets;
  }

  @Test
  void savedAnswersAreScoredWithoutAModel() throws IOException {
    var file = folder.resolve("x.answers.jsonl");
    Files.writeString(
        file,
        "{\"task\":\"winowhy\",\"prompt\":\"p\\n"
            + "\",\"truth\":\"correct\",\"decoded\":\"p\\n"
            + "Correct\"}\n");
    assertThat(eval("--rescore", file.toString()))
        .contains("winowhy (saved answers): 1 samples", "Accuracy: 1.0000");
  }

  @Test
  void aTinyModelIsEvaluatedSavedAndScoredAgain() throws IOException {
    var fixtures = Path.of(System.getProperty("meteora.root", ".."), "../shared/fixtures");
    var tiny = fixtures.resolve("tiny-llama");
    assumeTrue(Files.isDirectory(tiny), "no reference data at " + tiny);
    var samples = new ArrayList<Sample>();
    for (int i = 0; i < 7; i++) {
      samples.add(new Sample("[INST] Count " + "again ".repeat(i) + "[/INST]\n", "three"));
    }
    samples.add(new Sample("[INST] " + "a very long one ".repeat(200) + "[/INST]\n", "two"));
    Sample.write(folder.resolve("datasets/object_counting/test.jsonl"), samples);
    var common =
        List.of(
            "--task=object_counting",
            "--base-model-path=" + tiny.resolve("base"),
            "--adapter-dir=" + tiny.resolve("adapters"),
            "--meteora-ckpt-path=" + tiny.resolve("meteora"),
            "--target-dir=" + folder.resolve("datasets"),
            "--eval-result-save-dir=" + folder.resolve("results"),
            "--max-length=80",
            "--save");
    var texts = new ArrayList<List<String>>();
    for (var more :
        List.of(
            List.of("--batch-size=3", "--routes"),
            List.of("--batch-size=1", "--model=task_a"),
            List.of("--batch-size=8", "--model=base", "--limit=2", "--max-new-tokens=3"),
            List.of("--batch-size=1", "--overwrite"))) {
      var args = new ArrayList<>(common);
      args.addAll(more);
      var printed = eval(args.toArray(String[]::new));
      var kind =
          printed.contains("(task_a)")
              ? "peft/task_a"
              : printed.contains("base") ? "base" : "meteora";
      var file = folder.resolve("results/" + kind + "/object_counting.json");
      var json = Jsonl.readFile(file);
      assertThat(json.get("samples").asInt()).isEqualTo(kind.equals("base") ? 2 : 7);
      assertThat(json.get("skipped").asInt()).isEqualTo(kind.equals("base") ? 0 : 1);
      assertThat(json.at("/settings/max_length").asInt()).isEqualTo(80);
      assertThat(json.get("settings").has("max_new_tokens")).isEqualTo(kind.equals("base"));
      if (kind.equals("base")) {
        assertThat(json.at("/settings/max_new_tokens").asInt()).isEqualTo(3);
        assertThat(json.at("/throughput/new_tokens").asInt()).isBetween(1, 2 * 3);
      }
      assertThat(json.at("/settings/no_repeat_ngram_size").asInt()).isEqualTo(30);
      assertThat(json.at("/model/sha256").size()).isPositive();
      assertThat(json.at("/throughput/new_tokens").asInt()).isPositive();
      assertThat(eval("--rescore", file.toString()).lines().skip(1))
          .containsExactlyElementsOf(printed.lines().skip(1).toList());
      if (kind.equals("meteora")) {
        var answers = new ArrayList<String>();
        Jsonl.forEach(
            folder.resolve("results/meteora/object_counting.answers.jsonl"),
            (node, line) -> answers.add(node.get("decoded").asText()));
        texts.add(answers);
      }
    }
    assertThat(folder.resolve("results/meteora/object_counting.routes"))
        .isDirectoryContaining("glob:**/routing.json");
    assertThat(texts.get(0)).as("batch 3 and batch 1").isEqualTo(texts.get(1));
    refused(
        "results",
        "--task=object_counting",
        "--model=base",
        "--save",
        "--base-model-path=" + tiny.resolve("base"),
        "--target-dir=" + folder.resolve("datasets"),
        "--eval-result-save-dir="
            + Files.writeString(folder.resolve("results-file"), "not a folder"));
  }

  /** The composite's temperature is another; the model that is loaded stays. */
  @Test
  void severalTasksAreAnsweredAsEachAlone() throws IOException {
    var tiny = Path.of(System.getProperty("meteora.root", "..")).resolve("configs/tiny");
    var common =
        List.of(
            "--config=" + tiny.resolve("config.yaml"),
            "--base-model-path=" + tiny.resolve("base"),
            "--meteora-ckpt-path=" + tiny.resolve("meteora"),
            "--adapter-dir=" + tiny.resolve("adapters"),
            "--target-dir=" + tiny.resolve("datasets"),
            "--device=cpu",
            "--limit=3",
            "--max-length=700",
            "--max-new-tokens=6",
            "--save");
    for (var tasks : List.of("count_vowels,composite_4", "composite_4", "count_vowels")) {
      var args = new ArrayList<>(common);
      args.add("--task=" + tasks);
      args.add("--eval-result-save-dir=" + folder.resolve(tasks.contains(",") ? "all" : "each"));
      eval(args.toArray(String[]::new));
    }
    for (var task : List.of("count_vowels", "composite_4")) {
      var all = folder.resolve("all/meteora/" + task);
      var each = folder.resolve("each/meteora/" + task);
      var temperature = Jsonl.readFile(Path.of(all + ".json")).at("/model/routing_temperature");
      assertThat(temperature.asDouble() > 1).isEqualTo(task.startsWith("composite"));
      assertThat(Jsonl.readFile(Path.of(each + ".json")).at("/model/routing_temperature"))
          .isEqualTo(temperature);
      assertThat(Path.of(all + ".answers.jsonl"))
          .hasSameTextualContentAs(Path.of(each + ".answers.jsonl"));
    }
  }
}
