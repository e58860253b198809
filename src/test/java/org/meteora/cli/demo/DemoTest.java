package org.meteora.cli.demo;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.function.UnaryOperator;
import java.util.regex.Pattern;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.UserException;
import org.meteora.cli.Main;
import org.meteora.data.Sample;

class DemoTest {
  private static final Pattern QUESTION =
      Pattern.compile("\\[INST\\] (.*?)([A-Z]{3,7}|[0-9]{3,6})\\??+ \\[/INST\\]\n");

  /** Each task's answer, computed in another way. */
  private static final Map<String, UnaryOperator<String>> ANSWERS =
      Map.of(
          "count_vowels", word -> "" + word.replaceAll("[^AEIOU]", "").length(),
          "remove_vowels", word -> String.join("", word.split("[AEIOU]")),
          "reverse_word",
              word -> word.chars().mapToObj(c -> "" + (char) c).reduce("", (a, b) -> b + a),
          "shift_letters",
              word ->
                  word.chars()
                      .mapToObj(c -> "" + "BCDEFGHIJKLMNOPQRSTUVWXYZA".charAt(c - 'A'))
                      .reduce("", String::concat),
          "sort_digits",
              digits -> {
                var sorted = new StringBuilder();
                for (char digit = '0'; digit <= '9'; digit++) {
                  sorted.append(digits.replaceAll("[^" + digit + "]", ""));
                }
                return sorted.toString();
              });

  @Test
  void questionsHaveTheirAnswersAndAreNotSharedBetweenTrainAndTest() {
    for (var task : DemoTask.ALL) {
      var train = task.questions("train", 200, List.of());
      var test = task.questions("test", 50, train);
      var language = new java.util.HashMap<String, String>();
      for (var sample : train) {
        var question = QUESTION.matcher(sample.prompt());
        assertThat(question.matches()).as(sample.prompt()).isTrue();
        var input = question.group(2);
        if (task.name().equals("translate_zorbish")) {
          assertThat(language.merge(input, sample.response(), (a, b) -> a.equals(b) ? a : "two"))
              .isEqualTo(sample.response());
        } else {
          assertThat(sample.response()).isEqualTo(ANSWERS.get(task.name()).apply(input));
        }
      }
      if (task.name().equals("translate_zorbish")) {
        assertThat(new HashSet<>(language.values())).hasSameSizeAs(language.keySet());
      } else {
        assertThat(test).doesNotContainAnyElementsOf(train).doesNotHaveDuplicates();
      }
    }
  }

  @Test
  void sheetsHaveTheLayoutOfCompositePrompts() {
    var task = DemoTask.ALL.getFirst();
    var train = task.questions("train", 200, List.of());
    var sheets =
        task.practice(train).stream().filter(sample -> sample.prompt().startsWith("\n")).toList();
    assertThat(sheets).hasSizeBetween(70, 130);
    for (var sheet : sheets) {
      var lines = sheet.response().split("\n");
      var questions = sheet.prompt().split("(?=\\[INST\\])");
      boolean examples = sheet.prompt().startsWith("\nExample 1:\n\n[INST]");
      assertThat(questions).hasSize(1 + lines.length * (examples ? 3 : 1));
      assertThat(sheet.prompt())
          .contains(
              "\nAnswer the following questions in the same way, one numbered line for each:");
      for (int i = 0; i < lines.length; i++) {
        var text = questions[questions.length - lines.length + i].strip() + "\n";
        assertThat(lines[i]).startsWith((i + 1) + ". ");
        assertThat(train).contains(new Sample(text, lines[i].substring(3)));
      }
    }
  }

  @Test
  void runsFromDataToRouting(@TempDir Path folder) {
    var text = new StringWriter();
    var demo =
        new Demo(
            folder.resolve("demo"),
            new PrintWriter(text),
            Main::run,
            new Demo.Size(60, 3, 4, 2, 2, 1));
    demo.start();
    assertThat(text.toString())
        .contains("$ meteora train-lora", "$ meteora train ", "$ meteora eval", "$ meteora routes")
        .containsPattern("reverse_word +\\d+ +\\d+ +\\d+\n")
        .containsPattern("The right adapter has the largest weight on [\\d.]+ % of \\d+ tokens");
    assertThat(folder.resolve("demo/run/meteora/model.safetensors")).isRegularFile();
    assertThat(folder.resolve("demo/routes/0/routes.html")).isRegularFile();
    assertThat(folder.resolve("demo/results/meteora/composite_3.routes/routing.png"))
        .isRegularFile();
    assertThat(Files.exists(folder.resolve("demo/adapters/sort_digits/adapter_config.json")))
        .isTrue();
    assertThatThrownBy(demo::start)
        .isInstanceOf(UserException.class)
        .hasMessageContaining("is there already");
  }
}
