package org.meteora.eval.metric;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.UserException;
import org.meteora.data.tasks.MetricsFile;
import org.meteora.data.tasks.Tasks;
import org.meteora.eval.EvalTask;
import org.meteora.eval.report.SavedAnswers;
import org.meteora.io.Jsonl;

/** Metrics on strings small enough to follow by hand. */
class SmallMetricsTest {
  @Test
  void bleuAndRougeOfPairs() throws IOException {
    var file = SmallMetricsTest.class.getResourceAsStream("/org/meteora/eval/small-metrics.json");
    for (var pair : Jsonl.JSON.readTree(file).get("pairs")) {
      var answer = pair.get("answer").asText();
      var truth = pair.get("truth").asText();
      assertThat(Bleu.sentence(answer, List.of(truth)).text()).isEqualTo(pair.get("bleu").asText());
      Rouge.pair(answer, truth)
          .forEach(
              (name, score) -> {
                var want = pair.get("rouge").get(name);
                assertThat(score.r()).isCloseTo(want.get("r").asDouble(), within(1e-9));
                assertThat(score.p()).isCloseTo(want.get("p").asDouble(), within(1e-9));
                assertThat(score.f()).isCloseTo(want.get("f").asDouble(), within(1e-9));
              });
    }
  }

  @Test
  void tokensAreThoseOfMteval13a() {
    assertThat(Bleu.tokens("It's 3,000.50 (or so)-- ok?"))
        .containsExactly("It's", "3,000.50", "(", "or", "so", ")", "--", "ok", "?");
    assertThat(Bleu.tokens("1990-95 &amp; co., end.\n"))
        .containsExactly("1990", "-", "95", "&", "co", ".", ",", "end", ".");
    assertThat(Bleu.tokens("hyphen-\nated\u00a0word")).containsExactly("hyphenated", "word");
  }

  @Test
  void corpusBleuPoolsCountsAndThePublishedOneSeesTheFirstAnswerOnly() {
    var answers = List.of("the cat is on the mat", "", "totally different words here now");
    var truths = List.of("the cat is on the mat", "x", "nothing of that kind is");
    var scores = new Bleu().score(answers, truths);
    var corpus = (BleuScore) scores.get("BLEU");
    assertThat(corpus.hypothesisLength()).isEqualTo(11);
    assertThat(corpus.precisions().getFirst()).isCloseTo(100 * 6 / 11.0, within(1e-9));
    var published = (BleuScore) scores.get("bleu_as_published");
    assertThat(published.score()).isCloseTo(100, within(1e-9));
    assertThat(published.hypothesisLength()).isEqualTo(6);
  }

  @Test
  void nothingToScoreIsNull() {
    var empty = List.of("", "");
    var truths = List.of("a", "b");
    assertThat(new Bleu().score(empty, truths))
        .containsEntry("BLEU", null)
        .containsEntry("bleu_as_published", null);
    assertThat(new Rouge().score(empty, truths)).containsEntry("ROUGE", null);
    assertThat(new ExactAccuracy().score(List.of(), List.of())).containsEntry("Accuracy", null);
  }

  @Test
  void fullStopsAloneScoreZeroInRouge() {
    assertThat(Rouge.pair("...", "a b").get("rouge-l").f()).isZero();
    assertThat(Rouge.pair("a b", "...").get("rouge-1").f()).isZero();
  }

  @Test
  void rougeLOfALongTextIsTheUnionOverSentences() {
    // both sentences of the answer share words with the one of the truth: a b, and d
    var score = Rouge.pair("a b x. d y", "a b c d").get("rouge-l");
    assertThat(score.r()).isEqualTo(3 / 4.0);
    assertThat(score.p()).isEqualTo(3 / 5.0);
  }

  @Property(tries = 200)
  void anyTextHasScoresInRange(@ForAll String answer, @ForAll String truth) {
    assertThat(Bleu.sentence(answer, List.of(truth)).score()).isBetween(0.0, 100.000001);
    Rouge.pair(answer, truth).values().forEach(score -> assertThat(score.f()).isBetween(0.0, 1.0));
    new Gsm8kAccuracy().score(List.of(answer), List.of(truth));
    new YesNoAccuracy().score(List.of(answer), List.of(truth));
  }

  @Test
  void accuracies() {
    assertThat(right(new ExactAccuracy(), "Valid", "valid")).isTrue();
    assertThat(right(new ExactAccuracy(), "is valid", "valid")).isFalse();
    assertThat(right(new FuzzyAccuracy(), "it is VALID.", "Valid")).isTrue();
    assertThat(right(new FuzzyAccuracy(), "", "x")).isFalse();
    assertThat(right(new YesNoAccuracy(), "yes. so", "Yes, of course")).isTrue();
    assertThat(right(new YesNoAccuracy(), "no", "Yes")).isFalse();
    assertThat(right(new YesNoAccuracy(), "well, yes", "Yes")).isFalse();
  }

  @Test
  void gsm8k() {
    var metric = new Gsm8kAccuracy();
    assertThat(right(metric, "so 2+3=5 and 7", "work\n#### 7")).isTrue();
    assertThat(right(metric, "the answer is 1,203. or 5", "#### 1203")).isTrue();
    assertThat(right(metric, "first 5, the answer is: $18.00", "#### 18")).isTrue();
    assertThat(right(metric, "10-3", "#### 3")).isTrue();
    assertThat(right(metric, "it falls to -3", "#### -3")).isTrue();
    assertThat(right(metric, "none", "#### 3")).isFalse();
  }

  private static boolean right(Metric metric, String answer, String truth) {
    return metric.score(List.of(answer), List.of(truth)).get("Accuracy").equals(1.0);
  }

  @Test
  void compositeAnswersAreFoundByTheirNumbers() {
    assertThat(CompositeScore.answer("1. a\n2. b c\n10. z", 2)).isEqualTo("b c");
    assertThat(CompositeScore.answer("1. a\n3. c", 2)).isEmpty();
    assertThat(CompositeScore.answer("2. \n3. c", 2)).isEmpty();
    assertThat(CompositeScore.answer("1. a\n10. z", 10)).isEqualTo("z");
  }

  @Test
  void compositeScoresAreByTask() {
    var task = EvalTask.saved("mine", List.of("winowhy", "object_counting"), Map.of());
    var scores =
        task.score(
            List.of("1. correct\n2. there are three", "1. incorrect"),
            List.of("correct@@@@\nthree", "correct@@@@\ntwo"));
    assertThat(scores.keySet())
        .containsExactly("Avg attempt nums", "winowhy", "object_counting", "Avg correct nums");
    assertThat(scores)
        .containsEntry("Avg attempt nums", 1.5)
        .containsEntry("winowhy", Map.of("Accuracy", 0.5))
        .containsEntry("object_counting", Map.of("Accuracy", 0.5))
        .containsEntry("Avg correct nums", 1.0);
  }

  @Test
  void warningsCountWords() {
    var warnings = Warnings.of(List.of("", "a b c", "abcdefgh"), List.of("x", "y", "z"), 4);
    assertThat(warnings).isEqualTo(new Warnings(1, 1, 4));
  }

  @Test
  void everyTaskNamesMetricsThatThereAre() {
    for (var task : Tasks.all()) {
      assertThat(task.metrics()).isNotEmpty();
      assertThat(EvalTask.of(task.name()).metrics().get(task.name())).hasSameSizeAs(task.metrics());
    }
    assertThat(Metric.of("gsm8k_accuracy")).isInstanceOf(Gsm8kAccuracy.class);
    for (var key :
        List.of("blue", "metric", "accuracy", "composite_score", "Bleu", "../bleu", "")) {
      assertThatThrownBy(() -> Metric.of(key))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("no metric \"" + key + "\"; there are bleu, exact_accuracy, ");
    }
  }

  @Test
  void aTaskBeyondThe28IsScoredAsItsFolderSays(@TempDir Path datasets) throws IOException {
    var data = Files.createDirectories(datasets.resolve("date_understanding"));
    Files.writeString(data.resolve("test.jsonl"), "");
    var exact = EvalTask.of("date_understanding", datasets);
    assertThat(exact.score(List.of("on monday"), List.of("Monday"))).containsEntry("Accuracy", 0.0);
    MetricsFile.write(data, List.of("fuzzy_accuracy", "bleu"));
    var named = EvalTask.of("date_understanding", datasets);
    assertThat(named.score(List.of("on monday"), List.of("Monday")))
        .containsEntry("Accuracy", 1.0)
        .containsKey("BLEU");
    var part =
        EvalTask.composite("mine", List.of("winowhy", "date_understanding"), datasets)
            .score(List.of("1. x\n2. on monday"), List.of("x@@@@\nMonday"));
    assertThat(part).containsEntry("Avg correct nums", 2.0);
    // a saved result says it, so that answers are scored again without the folder
    var result =
        Files.writeString(
            datasets.resolve("x.json"),
            "{\"settings\":{\"tasks\":[],\"metrics\":{\"date_understanding\":[\"fuzzy_accuracy\"]}}}");
    assertThat(
            SavedAnswers.task(result, "date_understanding")
                .orElseThrow()
                .score(List.of("on monday"), List.of("Monday")))
        .containsOnly(Map.entry("Accuracy", 1.0));
    Files.writeString(data.resolve("metrics.json"), "{\"metrics\":[\"blue\"]}");
    assertThatThrownBy(() -> EvalTask.of("date_understanding", datasets))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("date_understanding: no metric \"blue\"");
    Files.writeString(data.resolve("metrics.json"), "{}");
    assertThatThrownBy(() -> EvalTask.of("date_understanding", datasets))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("metrics.json");
  }
}
