package org.meteora.eval.compare;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import java.io.IOException;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.function.IntFunction;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.UserException;
import org.meteora.data.composite.CompositeTask;
import org.meteora.eval.Answer;
import org.meteora.eval.EvalTask;
import org.meteora.eval.Evaluator;
import org.meteora.eval.Scores;
import org.meteora.eval.Throughput;
import org.meteora.eval.command.CompareCommand;
import org.meteora.eval.report.SavedResult;
import org.meteora.eval.statistics.Bootstrap;
import org.meteora.eval.statistics.McNemar;
import org.meteora.io.Jsonl;
import picocli.CommandLine;

class ComparerTest {
  @TempDir Path folder;

  private Path save(
      String into,
      String model,
      EvalTask task,
      int count,
      Object limit,
      IntFunction<String> answer) {
    var answers = new ArrayList<Answer>();
    for (int i = 0; i < count; i++) {
      var prompt = "[INST] question " + i + " <b> [/INST]\n";
      var truth =
          task.parts().isEmpty()
              ? "t" + i % 7
              : String.join(
                  CompositeTask.SEPARATOR, task.parts().stream().map(p -> "yes").toList());
      answers.add(
          new Answer(
              task.name(),
              i,
              prompt,
              truth,
              prompt + answer.apply(i),
              answer.apply(i),
              5,
              3,
              false,
              false));
    }
    try (var saved = new SavedResult(folder.resolve(into), model, task.name())) {
      var settings = new java.util.HashMap<String, Object>();
      settings.put("limit", limit);
      settings.put("tasks", task.parts());
      saved.write(
          List.of(),
          settings,
          Map.of("model", model, "routing_top_k", into.length()),
          new Evaluator.Run(
              answers,
              new Throughput(1, count, 1, 1),
              Map.of(),
              Optional.of(new Evaluator.Batching(10, into.length()))),
          Scores.of(task, answers));
      return saved.file();
    }
  }

  private Comparison compare(String... results) {
    return Comparer.compare(List.of(results), Bootstrap.RESAMPLES, Bootstrap.SEED, false);
  }

  private static Comparison.Row row(Comparison comparison, String task, String score) {
    return comparison.rows().stream()
        .filter(row -> row.task().equals(task) && row.score().equals(score))
        .findFirst()
        .orElseThrow();
  }

  @Test
  void pairsSamplesAndTellsWhereTheyDiffer() {
    var winowhy = EvalTask.of("winowhy");
    save("r", "base", winowhy, 60, null, i -> i % 2 == 0 ? "t" + i % 7 : "x");
    save("r", "meteora", winowhy, 60, null, i -> i % 10 != 1 ? "t" + i % 7 : "x");
    var comparison = compare(folder.resolve("r").toString());
    assertThat(comparison.columns()).containsExactly("base", "meteora");
    assertThat(comparison.warnings()).isEmpty();
    var accuracy = row(comparison, "winowhy", "Accuracy");
    assertThat(accuracy.cells().get(0).score()).isEqualTo(0.5);
    assertThat(accuracy.cells().get(1).score()).isEqualTo(0.9);
    var change = accuracy.cells().get(1).change();
    assertThat(change.difference()).isCloseTo(0.4, within(1e-12));
    assertThat(change.onlyFirst()).isZero();
    assertThat(change.onlyThis()).isEqualTo(24);
    assertThat(change.mcnemar()).isEqualTo(McNemar.exact(0, 24));
    assertThat(change.clear()).isTrue();
    assertThat(comparison.samples().getFirst().different()).hasSize(24);
    assertThat(comparison.samples().getFirst().different().getFirst().right())
        .containsEntry("winowhy", List.of(false, true));
    // the same interval as the saved one: the same samples, seed and draws
    var saved = Jsonl.readFile(folder.resolve("r/base/winowhy.json"));
    assertThat(saved.at("/intervals/winowhy/Accuracy/low").asDouble())
        .isEqualTo(accuracy.cells().get(0).interval().low());
  }

  @Test
  void otherSamplesAndSettingsAreWarnedOf() {
    var winowhy = EvalTask.of("winowhy");
    var a = save("a", "meteora", winowhy, 60, null, i -> "t" + i % 7);
    var b = save("bb", "meteora", winowhy, 40, 40, i -> "x");
    var comparison = compare("first=" + a, b.toString());
    assertThat(comparison.columns()).containsExactly("first", "meteora");
    assertThat(comparison.warnings())
        .anyMatch(warning -> warning.contains("first 60, meteora 40") && warning.contains("the 40"))
        .anyMatch(warning -> warning.contains("settings.limit") && warning.contains("none"));
    assertThat(comparison.differences())
        .anyMatch(setting -> setting.name().equals("model.routing_top_k"));
    assertThat(comparison.warnings()).noneMatch(warning -> warning.contains("routing_top_k"));
    assertThat(comparison.differences())
        .as("outcomes are no settings")
        .noneMatch(setting -> setting.name().startsWith("batching"));
    assertThat(row(comparison, "winowhy", "Accuracy").samples()).isEqualTo(40);
    assertThat(compare(a.toString(), b.toString()).columns())
        .containsExactly("meteora a", "meteora bb");
  }

  @Test
  void nothingInCommonAndWrongPathsAreRefused() throws IOException {
    var a = save("a", "meteora", EvalTask.of("winowhy"), 5, null, i -> "x");
    var answers = a.resolveSibling("winowhy.answers.jsonl");
    var b = folder.resolve("b.json");
    Files.copy(a, b);
    Files.writeString(
        folder.resolve("winowhy.answers.jsonl"),
        Files.readString(answers).replace("question", "another"));
    assertThatThrownBy(() -> compare(a.toString(), b.toString()))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("no sample in common");
    assertThatThrownBy(() -> compare(a.toString(), a.toString())).hasMessageContaining("twice");
    assertThatThrownBy(() -> compare("gone.json")).hasMessageContaining("gone.json");
    assertThatThrownBy(() -> compare("x=gone.json")).hasMessageContaining("gone.json");
    var empty = Files.createDirectory(folder.resolve("empty")).toString();
    assertThatThrownBy(() -> compare(empty)).hasMessageContaining("no saved results");
  }

  /** Composite answers: parts on the same draws, means over parts, and the paper's beside. */
  @Test
  void compositesHaveRowsForTheirPartsAndMeans() {
    var ten = EvalTask.of("composite_10");
    var a = save("a", "meteora", ten, 30, null, i -> lines(i, 2));
    var b = save("b", "meteora", ten, 30, null, i -> lines(i, 3));
    var comparison = Comparer.compare(List.of("k2=" + a, "k1=" + b), 500, 1, true);
    assertThat(comparison.published()).containsExactly("paper: MeteoRA", "paper: LoRA-B");
    var winowhy = row(comparison, "winowhy", "Accuracy");
    assertThat(winowhy.published()).containsExactly(0.422, 0.078);
    assertThat(row(comparison, "strategyqa", "BLEU as published").published())
        .containsExactly(3.23, 0.0);
    assertThat(row(comparison, "strategyqa", "ROUGE-L").published()).containsExactly(0.210, 0.099);
    var mean =
        comparison.means().stream()
            .filter(each -> each.score().equals("Accuracy"))
            .findFirst()
            .orElseThrow();
    assertThat(mean.samples()).isEqualTo(7);
    assertThat(mean.cells().get(0).score()).isCloseTo(0.5, within(1e-12));
    assertThat(mean.cells().get(1).score()).isCloseTo(1 / 3.0, within(1e-12));
    // every part is right on the same prompts: the mean's error is one part's, not a seventh root
    assertThat(mean.cells().get(0).interval().low())
        .isCloseTo(winowhy.cells().get(0).interval().low(), within(1e-12));
    var correct = row(comparison, "composite_10", "Avg correct nums");
    assertThat(correct.cells().get(0).score()).isCloseTo(3.5, within(1e-12));
    assertThat(comparison.samples().getFirst().different()).isNotEmpty();
  }

  /** Where the first is always right, a share is the mean itself. */
  @Test
  void meansAreDividedByTheFirst() {
    for (var task : List.of("winowhy", "gsm8k")) {
      save("all", "meteora", EvalTask.of(task), 40, null, i -> "t" + i % 7);
      save("third", "meteora", EvalTask.of(task), 40, null, i -> i % 3 == 0 ? "t" + i % 7 : "x");
      save("none", "meteora", EvalTask.of(task), 40, null, i -> "x");
    }
    var folders = Stream.of("third", "all", "none").map(it -> folder.resolve(it).toString());
    var arguments = new ArrayList<>(folders.toList());
    var backwards = Comparer.compare(arguments, 500, 1, false).means().getFirst();
    assertThat(backwards.cells().get(1).change().share().value()).isCloseTo(40 / 14., within(1e-9));
    assertThat(backwards.cells().get(2).change().share().value()).isZero();
    Collections.swap(arguments, 0, 1);
    var comparison = Comparer.compare(arguments, 500, 1, false);
    var third = comparison.means().getFirst().cells().get(1);
    assertThat(third.change().share().value()).isCloseTo(14 / 40., within(1e-9));
    assertThat(third.change().share().interval()).isEqualTo(third.interval());
    assertThat(ComparisonText.plain(comparison, 0))
        .containsPattern("single tasks: mean, divided by meteora all +Accuracy +0.350 \\(0.2");
    Collections.swap(arguments, 0, 2); // nothing is right in the first
    var undivided = Comparer.compare(arguments, 500, 1, false).means().getFirst();
    assertThat(undivided.cells().get(1).change().share()).isNull();
  }

  private static String lines(int sample, int every) {
    var text = new StringBuilder();
    for (int part = 1; part <= 10; part++) {
      text.append(part).append(". ").append(sample % every == 0 ? "yes" : "other").append('\n');
    }
    return text.toString();
  }

  @Test
  void writesTextMarkdownJsonAndOnePage() throws IOException {
    var winowhy = EvalTask.of("winowhy");
    save("r", "base", winowhy, 20, null, i -> "x <i>");
    save("r", "meteora", winowhy, 20, null, i -> i % 3 == 0 ? "x" : "t" + i % 7);
    save("r", "winowhy", winowhy, 20, null, i -> "t" + i % 7);
    var gsm = EvalTask.of("gsm8k");
    save("r", "base", gsm, 20, null, i -> "1");
    save("r", "meteora", gsm, 20, null, i -> String.valueOf(i % 7));
    var out = new StringWriter();
    var line = new CommandLine(new CompareCommand()).setOut(new PrintWriter(out));
    int code =
        line.execute(
            folder.resolve("r").toString(),
            "--out",
            folder.resolve("c.html").toString(),
            "--out",
            folder.resolve("c.md").toString(),
            "--out",
            folder.resolve("c.json").toString());
    assertThat(code).isZero();
    assertThat(out.toString())
        .contains("base", "own adapter", "Differences from base", "p < 0.001", "mean")
        .contains("truth: t0", "meteora (right)", "10,000 bootstrap resamples");
    assertThat(Files.readString(folder.resolve("c.md")))
        .contains("| task | score |", "own adapter");
    var html = Files.readString(folder.resolve("c.html"));
    assertThat(html).contains("<svg", "x &lt;i&gt;").doesNotContain("<i>", "http://", "https://");
    var usual = Locale.getDefault();
    try {
      Locale.setDefault(Locale.forLanguageTag("ar-EG")); // whose digits no browser reads in a size
      line.execute(
          folder.resolve("r").toString(), "--out", folder.resolve("arabic.html").toString());
    } finally {
      Locale.setDefault(usual);
    }
    assertThat(Files.readString(folder.resolve("arabic.html")))
        .containsPattern("<svg viewBox=\"0 0 [0-9]+ [0-9]+\" width=\"[0-9]+\"")
        .doesNotContainPattern("=\"[٠-٩]");
    var json = Jsonl.readFile(folder.resolve("c.json"));
    assertThat(json.at("/rows/0/cells/0/interval/low").isNumber()).isTrue();
    assertThat(json.path("columns").size()).isEqualTo(3);
    assertThatThrownBy(
            () -> {
              var wrong = new CommandLine(new CompareCommand());
              wrong.setExecutionExceptionHandler(
                  (e, l, p) -> {
                    throw e;
                  });
              wrong.setErr(new PrintWriter(new StringWriter()));
              if (wrong.execute("x", "--out", "c.pdf") != 0) {
                throw new UserException("refused");
              }
            })
        .isInstanceOf(UserException.class);
  }
}
