package org.meteora.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.io.Jsonl;

/** Through the command line, on a copy of the embedded tiny checkpoint. */
class EndToEndTest {
  @TempDir Path folder;

  private record Result(int code, String out, String err) {}

  @BeforeEach
  void copyTheTinyCheckpoint() throws IOException {
    var tiny = Path.of(System.getProperty("meteora.root", ".."), "configs/tiny");
    try (var files = Files.walk(tiny)) {
      for (var file : files.toList()) {
        var target = folder.resolve(tiny.relativize(file).toString());
        if (Files.isDirectory(file)) {
          Files.createDirectories(target);
        } else {
          Files.copy(file, target);
        }
      }
    }
    Files.delete(folder.resolve("config.yaml"));
  }

  private Result run(String... arguments) {
    var all = new ArrayList<>(List.of(arguments));
    if (!List.of("--help", "bench", "evla", "compare").contains(arguments[0])
        && !all.contains("--config")) {
      all.addAll(
          List.of(
              "--base-model-path=" + folder.resolve("base"),
              "--meteora_ckpt_path=" + folder.resolve("meteora"),
              "--adapter-dir=" + folder.resolve("adapters"),
              "--target-dir=" + folder.resolve("datasets"),
              "--eval-result-save-dir=" + folder.resolve("results")));
    }
    var out = new ByteArrayOutputStream();
    var err = new ByteArrayOutputStream();
    var stdout = System.out;
    var stderr = System.err;
    System.setOut(new PrintStream(out, true, StandardCharsets.UTF_8));
    System.setErr(new PrintStream(err, true, StandardCharsets.UTF_8));
    try {
      int code = Main.run(all.toArray(String[]::new));
      return new Result(
          code, out.toString(StandardCharsets.UTF_8), err.toString(StandardCharsets.UTF_8));
    } finally {
      System.setOut(stdout);
      System.setErr(stderr);
    }
  }

  /** Exit code 2 and one line on stderr that says what was wrong. */
  private void refused(Result result, String... parts) {
    assertThat(result.code()).as(result.err()).isEqualTo(2);
    var log =
        List.of("WARN", "the CPU: gated layers"); // what was chosen is said before a file fails
    assertThat(
            result.err().strip().lines().filter(line -> log.stream().noneMatch(line::startsWith)))
        .hasSize(1);
    assertThat(result.err()).contains(parts).doesNotContain("\tat ");
    assertThat(folder.resolve("results")).isEmptyDirectory();
  }

  @BeforeEach
  void makeTheResultFolder() throws IOException {
    Files.createDirectories(folder.resolve("results"));
  }

  @Test
  void evaluatesSavesAndScoresAgain() {
    for (var model : List.of("meteora", "base", "reverse_word")) {
      var result =
          run(
              "eval",
              "--task",
              "composite_4",
              "--batch_size",
              "4",
              "--limit",
              "5",
              "--max_length",
              "640",
              "--model",
              model,
              "--save");
      assertThat(result.code()).as(result.err()).isZero();
      assertThat(result.out()).contains("reverse_word", "Avg attempt nums");
    }
    assertThat(folder.resolve("results/base/composite_4.json")).exists();
    assertThat(folder.resolve("results/peft/reverse_word/composite_4.json")).exists();
    var saved = Jsonl.readFile(folder.resolve("results/meteora/composite_4.json"));
    assertThat(saved.toString()).contains("\"routing_temperature\":20.0", "sha256");
    var again =
        run(
            "eval",
            "--rescore",
            folder.resolve("results/meteora/composite_4.answers.jsonl").toString());
    assertThat(again.code()).as(again.err()).isZero();
    assertThat(again.out()).contains("Avg correct nums");
  }

  /** One result a point, the model loaded once; started again, what is there is kept. */
  @Test
  void sweepsRoutingAndGoesOn() throws IOException {
    var arguments =
        new String[] {
          "eval",
          "--task",
          "count_vowels",
          "--limit",
          "3",
          "--max-length",
          "64",
          "--sweep",
          "routing_top_k=1,2",
          "--sweep",
          "routing-temperature=1,9"
        };
    var first = run(arguments);
    assertThat(first.code()).as(first.err()).isZero();
    assertThat(first.out()).contains("routing_top_k  routing_temperature  Accuracy", "sweep.html");
    var sweep = folder.resolve("results/sweep/count_vowels");
    assertThat(Files.readString(sweep.resolve("sweep.html"))).contains("<svg");
    var point = sweep.resolve("routing_top_k=2,routing_temperature=9/meteora/count_vowels.json");
    var saved = Jsonl.readFile(point);
    assertThat(saved.at("/model/routing_top_k").asInt()).isEqualTo(2);
    assertThat(saved.at("/model/routing_temperature").asDouble()).isEqualTo(9);
    // each point's answers are those of an evaluation of its own
    var alone =
        run(
            "eval",
            "--task",
            "count_vowels",
            "--limit",
            "3",
            "--max-length",
            "64",
            "--save",
            "--routing-top-k",
            "1",
            "--routing-temperature",
            "9");
    assertThat(alone.code()).as(alone.err()).isZero();
    assertThat(folder.resolve("results/meteora/count_vowels.answers.jsonl"))
        .hasSameTextualContentAs(
            sweep.resolve(
                "routing_top_k=1,routing_temperature=9/meteora/count_vowels.answers.jsonl"));
    // one point is gone, the others stay as they are
    Files.delete(point);
    Files.delete(point.resolveSibling("count_vowels.answers.jsonl"));
    var kept = sweep.resolve("routing_top_k=1,routing_temperature=1/meteora/count_vowels.json");
    var before = Files.getLastModifiedTime(kept);
    for (int again = 0; again < 2; again++) {
      var result = run(arguments);
      assertThat(result.out()).isEqualTo(first.out());
      assertThat(Files.getLastModifiedTime(kept)).isEqualTo(before);
      assertThat(point).exists();
    }
    var compared = run("compare", sweep.toString());
    assertThat(compared.out()).contains("routing_top_k=1,routing_temperature=9");
  }

  @Test
  void severalTasksAreAnsweredByOneModel() {
    var several = List.of("eval", "--limit", "2", "--max-length", "200", "--save", "--task");
    var two = new ArrayList<>(several);
    two.add("count_vowels,shift_letters");
    var result = run(two.toArray(String[]::new));
    assertThat(result.code()).as(result.err()).isZero();
    assertThat(result.out())
        .containsSubsequence("count_vowels (meteora)", "shift_letters (meteora)");
    assertThat(folder.resolve("results/meteora/shift_letters.json")).exists();
    var all = new ArrayList<>(several);
    all.addAll(List.of("all", "--resume"));
    result = run(all.toArray(String[]::new));
    assertThat(result.code()).as(result.err()).isZero();
    assertThat(result.out())
        .containsSubsequence("composite_4", "count_vowels", "reverse_word", "sort_letters");
    assertThat(result.err()).contains("2 answers are there already");
    // the temperature of each task is its own, and what is missing is said before any work
    var saved = Jsonl.readFile(folder.resolve("results/meteora/composite_4.json"));
    assertThat(saved.toString()).contains("\"routing_temperature\":20.0");
    saved = Jsonl.readFile(folder.resolve("results/meteora/sort_letters.json"));
    assertThat(saved.toString()).contains("\"routing_temperature\":1.0");
    result = run("eval", "--task", "count_vowels,gsm8k", "--limit", "1");
    assertThat(result.code()).isEqualTo(2);
    assertThat(result.err()).contains("no test data for gsm8k").doesNotContain("answers in");
  }

  @Test
  void generatesInOrderAsJson() throws IOException {
    var prompts =
        Files.writeString(folder.resolve("p.jsonl"), "{\"prompt\":\"a\"}\n{\"prompt\":\"bé\"}\n");
    var result =
        run(
            "generate",
            "--prompts",
            prompts.toString(),
            "--json",
            "--max_new_tokens",
            "6",
            "--routing_top_k",
            "1");
    assertThat(result.code()).as(result.err()).isZero();
    var lines = result.out().lines().toList();
    assertThat(lines).hasSize(2);
    assertThat(Jsonl.JSON.readTree(lines.get(1)).get("prompt").asText()).isEqualTo("bé");
    assertThat(Jsonl.JSON.readTree(lines.get(0)).get("token_ids").size()).isBetween(1, 6);
    var plain = run("generate", "--prompt", "a", "--max-new-tokens", "6", "--routing-top-k", "1");
    assertThat(plain.out())
        .isEqualTo(Jsonl.JSON.readTree(lines.get(0)).get("text").asText() + "\n");
    var sampled =
        run(
            "generate",
            "--prompt",
            "a",
            "--max-new-tokens",
            "6",
            "--temperature",
            "0.7",
            "--top-p",
            "0.9",
            "--seed",
            "3");
    assertThat(sampled.code()).isZero();
  }

  /** Lines with settings of their own, each against a run with the options alone. */
  @Test
  void linesOfPromptsHaveSettingsOfTheirOwn() throws IOException {
    var options =
        List.of(
            List.of("--max-new-tokens=8"),
            List.of("--routing-top-k=1", "--max-new-tokens=8"),
            List.of("--routing-temperature=0.2", "--max-new-tokens=3"),
            List.of("--router=uniform", "--max-new-tokens=8"),
            List.of("--model=sort_letters", "--max-new-tokens=8"),
            List.of("--model=base", "--max-new-tokens=8"),
            List.of("--temperature=1.5", "--top-k=9", "--seed=3", "--max-new-tokens=8"));
    var fields =
        List.of(
            "",
            ",\"routing_top_k\":1",
            ",\"routing_temperature\":0.2,\"max_new_tokens\":3",
            ",\"router\":\"uniform\"",
            ",\"adapter\":\"sort_letters\"",
            ",\"adapter\":\"base\"",
            ",\"temperature\":1.5,\"top_k\":9,\"seed\":3");
    var lines = new ArrayList<String>();
    fields.forEach(each -> lines.add("{\"prompt\":\"a question\"" + each + "}"));
    lines.add("{\"prompt\":\"a question\",\"stop\":7}");
    lines.add("{\"prompt\":\"a question\",\"adapter\":\"sort_leters\"}");
    lines.add("{\"prompt\":\"a question\",\"temperature\":1}");
    lines.add("{\"prompt\":\"a question\",\"seed\":18446744073709551617}");
    var prompts = Files.write(folder.resolve("p.jsonl"), lines);
    var file = prompts.toString();
    var result =
        run("generate", "--prompts", file, "--json", "--max-new-tokens=8", "--batch-size=4");
    assertThat(result.code()).isEqualTo(1);
    assertThat(result.err())
        .contains("p.jsonl:8: \"stop\" must be a text that is not empty, or a list of such, not 7")
        .contains("p.jsonl:9: \"adapter\": there is none called sort_leters; did you mean")
        .contains("p.jsonl:10: sampling needs \"seed\"")
        .contains(
            "p.jsonl:11: \"seed\" must be a whole number of 64 bits, not 18446744073709551617");
    var answers = result.out().lines().toList();
    assertThat(answers).hasSize(options.size());
    assertThat(answers.stream().distinct().count()).isGreaterThan(4);
    for (int i = 0; i < options.size(); i++) {
      var arguments = new ArrayList<>(List.of("generate", "--prompt=a question", "--json"));
      arguments.addAll(options.get(i));
      assertThat(run(arguments.toArray(String[]::new)).out().strip())
          .as("%s", options.get(i))
          .isEqualTo(answers.get(i));
    }
    var text = Jsonl.JSON.readTree(answers.getFirst()).get("text").asText();
    var stop = text.substring(2, 4);
    result = run("generate", "--prompt=a question", "--max-new-tokens=8", "--stop", stop);
    assertThat(result.out()).isEqualTo(text.substring(0, text.indexOf(stop)) + "\n");
  }

  /** An empty and an overlong one among others: the others are answered, by their lines. */
  @Test
  void promptsThatCannotBeAnsweredAreSkipped() throws IOException {
    var prompts =
        Files.writeString(
            folder.resolve("p.jsonl"),
            "{\"prompt\":\"a\"}\n\n{\"prompt\":\""
                + "long ".repeat(2000)
                + "\"}\n{\"prompt\":\"b\"}\n");
    var result = run("generate", "--prompts", prompts.toString(), "--json", "--max-new-tokens=2");
    assertThat(result.code()).isEqualTo(1);
    assertThat(result.out().lines()).hasSize(2);
    assertThat(result.err()).contains("p.jsonl:3", "1 of 3");
  }

  @Test
  void anEvaluationGoesOnPastASampleThatCannotBeAnswered() throws IOException {
    Files.createDirectories(folder.resolve("datasets/mine"));
    Files.writeString(
        folder.resolve("datasets/mine/test.jsonl"),
        "{\"prompt\":\"a\",\"response\":\"b\"}\n\n{\"prompt\":\"\",\"response\":\"b\"}\n"
            + "{\"prompt\":\"Sort these words, all of them\",\"response\":\"b\"}\n");
    var result = run("eval", "--task=mine", "--save", "--max-length=5", "--model=base");
    assertThat(result.code()).isEqualTo(1);
    assertThat(result.err())
        .contains("mine/test.jsonl:3: the prompt is empty: skipped")
        .containsPattern("mine/test.jsonl:4: the prompt has \\d+ tokens, too many: skipped");
    var saved = Jsonl.readFile(folder.resolve("results/base/mine.json"));
    assertThat(saved.at("/problems/1").asText()).isEqualTo("the prompt is empty");
    assertThat(saved.at("/samples").asInt()).isEqualTo(1);
    assertThat(saved.at("/model/base_model_path").asText())
        .doesNotContain(System.getProperty("user.home") + "/");
  }

  @Test
  void makesCompositePrompts() {
    var result = run("create-composite", "--tasks", "reverse_word,sort_letters", "--nums", "3");
    assertThat(result.code()).as(result.err()).isZero();
    assertThat(folder.resolve("datasets/composite_2/test.jsonl")).exists();
    var evaluated = run("eval", "--task", "composite_2", "--limit", "1", "--max-length", "500");
    assertThat(evaluated.code()).as(evaluated.err()).isZero();
  }

  @Test
  void helpHasExamples() {
    assertThat(run("--help").code()).isZero();
    for (var command : Main.commandLine().getSubcommands().entrySet()) {
      var usage = command.getValue().getUsageMessage();
      assertThat(usage).as(command.getKey()).contains("meteora " + command.getKey(), "Example");
    }
  }

  @Test
  void mistakesOnTheCommandLine() {
    refused(run("evla"), "evla", "did you mean eval");
    refused(run("eval", "--taks", "x"), "--taks", "--task");
    refused(run("eval", "--task", "alpacca"), "alpacca", "alpaca");
    refused(run("eval", "--task", "alpaca"), "alpaca", "test.jsonl");
    refused(run("eval", "--task", "composite_4", "--batch-size", "x"), "--batch-size");
    refused(run("eval", "--task", "composite_4", "--model", "no_such"), "no_such", "reverse_word");
    refused(run("eval", "--task", "composite_4", "--device", "tpu"), "tpu", "cpu");
    refused(run("eval", "--task", "composite_4", "--dtype", "f8"), "f8", "bf16");
    refused(
        run("eval", "--task", "composite_4", "--routing-temperature", "-1"), "routing-temperature");
    refused(run("eval", "--task", "composite_4", "--temperature", "1"), "--seed");
    refused(run("generate"), "--prompt");
  }

  @Test
  void mistakesInTheConfig() throws IOException {
    var config = folder.resolve("c.yaml");
    Files.writeString(config, "base_modle_path: x\n");
    refused(
        run("eval", "--task", "composite_4", "--config", config.toString()),
        "base_modle_path",
        "base_model_path");
    Files.writeString(config, "- x\n");
    refused(run("eval", "--task", "composite_4", "--config", config.toString()), "c.yaml", "map");
    refused(
        run("eval", "--task", "composite_4", "--config", folder.resolve("none.yaml").toString()),
        "none.yaml");
  }

  @Test
  void missingAndEmptyFolders() throws IOException {
    Files.delete(folder.resolve("base/tokenizer.json"));
    refused(run("eval", "--task", "composite_4"), "tokenizer.json");
    Files.delete(folder.resolve("base/config.json"));
    refused(run("eval", "--task", "composite_4"), "config.json");
    var empty = Files.createDirectories(folder.resolve("empty"));
    refused(
        run(
            "eval",
            "--task",
            "composite_4",
            "--config",
            Files.writeString(
                    folder.resolve("e.yaml"),
                    "base_model_path: "
                        + empty
                        + "\nmeteora_ckpt_path: x\ntarget_dir: "
                        + folder.resolve("datasets")
                        + "\n")
                .toString()),
        "config.json",
        "empty");
  }

  @Test
  void brokenWeights() throws IOException {
    var file = folder.resolve("base/model.safetensors");
    var good = Files.readAllBytes(file);
    Files.write(file, java.util.Arrays.copyOf(good, good.length - 100));
    refused(run("eval", "--task", "composite_4"), "model.safetensors", "truncated");
    var longHeader = good.clone();
    ByteBuffer.wrap(longHeader).order(ByteOrder.LITTLE_ENDIAN).putLong(0, 1L << 50);
    Files.write(file, longHeader);
    refused(run("eval", "--task", "composite_4"), "header");
    Files.write(file, good);
    var config = folder.resolve("base/config.json");
    var text = Files.readString(config);
    Files.writeString(
        config, text.replaceAll("\"intermediate_size\" : 160", "\"intermediate_size\" : 161"));
    refused(
        run("eval", "--task", "composite_4", "--model", "base"),
        "gate_proj.weight",
        "[160, 64]",
        "[161, 64]");
    refused(
        run("eval", "--task", "composite_4", "--model", "reverse_word"),
        "reverse_word",
        "another base model");
    Files.writeString(config, text.replaceAll("\"vocab_size\" : 258", "\"vocab_size\" : 200"));
    refused(run("eval", "--task", "composite_4"), "embed_tokens", "258", "200");
    Files.writeString(
        config,
        text.replaceAll("\"max_position_embeddings\" : 2048", "\"max_position_embeddings\" : 4"));
    refused(run("generate", "--prompt", "a longer prompt"), "4");
  }

  @Test
  void aCheckpointOfOtherAdapters() throws IOException {
    try (var files = Files.list(folder.resolve("adapters/sort_letters"))) {
      for (var file : files.toList()) {
        Files.delete(file);
      }
    }
    refused(run("eval", "--task", "composite_4"), "4 adapters", "has 3", "sort_letters");
  }

  @Test
  void brokenData() throws IOException {
    Files.writeString(
        folder.resolve("datasets/composite_4/test.jsonl"),
        "{\"prompt\":\"a\",\"response\":\"b\"}\n{oops\n");
    refused(run("eval", "--task", "composite_4"), "test.jsonl:2");
  }

  @Test
  void aResultFolderThatCannotBeWritten() throws IOException {
    var file = Files.writeString(folder.resolve("afile"), "");
    var result =
        run(
            "eval",
            "--task",
            "composite_4",
            "--save",
            "--config",
            config(file.resolve("results")).toString());
    refused(result, "afile");
  }

  private Path config(Path results) throws IOException {
    return Files.writeString(
        folder.resolve("own.yaml"),
        "base_model_path: "
            + folder.resolve("base")
            + "\nmeteora_ckpt_path: "
            + folder.resolve("meteora")
            + "\nadapter_dir: "
            + folder.resolve("adapters")
            + "\ntarget_dir: "
            + folder.resolve("datasets")
            + "\neval_result_save_dir: "
            + results
            + "\n");
  }
}
