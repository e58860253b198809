package org.meteora.eval.metric;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import java.util.stream.StreamSupport;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestFactory;
import org.meteora.eval.EvalTask;
import org.meteora.eval.clean.AnswerCleaner;
import org.meteora.io.Jsonl;

/** Cleaning and metrics against the original evaluation's own output. */
class MetricsFixtureTest {
  private static JsonNode fixture;

  @BeforeAll
  static void read() {
    var file = Path.of(System.getProperty("meteora.root", ".."), "../shared/fixtures/metrics.json");
    assumeTrue(Files.exists(file), "no reference data at " + file);
    fixture = Jsonl.readFile(file);
  }

  @TestFactory
  Stream<DynamicTest> everyCaseAgrees() {
    return StreamSupport.stream(fixture.get("cases").spliterator(), false)
        .map(each -> DynamicTest.dynamicTest(each.get("task").asText(), () -> check(each)));
  }

  private static void check(JsonNode expected) {
    var task = expected.get("task").asText();
    var cleaned = texts(expected.get("cleaned"));
    List<String> truths;
    if (expected.has("samples")) {
      truths = new ArrayList<>();
      int i = 0;
      for (var sample : expected.get("samples")) {
        var decoded = sample.get("decoded").asText();
        var answer = AnswerCleaner.clean(task, decoded, sample.get("prompt").asText());
        assertThat(answer.text()).isEqualTo(cleaned.get(i++));
        truths.add(sample.get("response").asText());
      }
      var warnings = Warnings.of(cleaned, truths, 0);
      assertThat(warnings.emptyAnswers())
          .isEqualTo(expected.at("/warning/0/zero length response count: ").asInt(-1));
      assertThat(warnings.tooLongAnswers())
          .isEqualTo(expected.at("/warning/1/too long response count: ").asInt(-1));
      var corpus = (BleuScore) new Bleu().score(cleaned, truths).get("BLEU");
      assertThat(corpus.text()).isEqualTo(expected.get("corpus_bleu").asText());
    } else {
      truths = texts(expected.get("response"));
    }
    compare(expected.get("result"), EvalTask.of(task).score(cleaned, truths), task);
  }

  /** Walks the original's lists of one-entry maps; every figure must be there and no other. */
  private static void compare(JsonNode expected, Map<String, Object> actual, String where) {
    var seen = new ArrayList<String>();
    for (var part : expected) {
      part.properties()
          .forEach(
              entry -> {
                seen.add(entry.getKey());
                one(entry.getValue(), actual, entry.getKey(), where + " " + entry.getKey());
              });
    }
    var others = new ArrayList<>(actual.keySet());
    others.removeAll(seen);
    others.remove("bleu_as_published");
    assertThat(others).as(where).isEmpty();
  }

  @SuppressWarnings("unchecked")
  private static void one(JsonNode want, Map<String, Object> actual, String key, String where) {
    assertThat(actual).as(where).containsKey(key);
    var value = actual.get(key);
    if (key.equals("BLEU")) {
      assertThat(((BleuScore) actual.get("bleu_as_published")).text())
          .as(where)
          .isEqualTo(want.asText());
    } else if (want.isNumber()) {
      assertThat((Double) value).as(where).isCloseTo(want.asDouble(), within(1e-9));
    } else if (key.equals("ROUGE")) {
      rouge(want, (Map<String, RougeScore>) value, where);
    } else {
      compare(want, (Map<String, Object>) value, where);
    }
  }

  private static void rouge(JsonNode want, Map<String, RougeScore> actual, String where) {
    assertThat(actual.keySet()).containsExactly("rouge-1", "rouge-2", "rouge-l");
    actual.forEach(
        (name, score) -> {
          var figures = want.get(name);
          assertThat(score.r()).as(where).isCloseTo(figures.get("r").asDouble(), within(1e-9));
          assertThat(score.p()).as(where).isCloseTo(figures.get("p").asDouble(), within(1e-9));
          assertThat(score.f()).as(where).isCloseTo(figures.get("f").asDouble(), within(1e-9));
        });
  }

  @Test
  @SuppressWarnings("unchecked")
  void awkwardStringsAgree() {
    var extra = fixture.get("extra");
    var answers = texts(extra.get("hyp"));
    var truths = texts(extra.get("ref"));
    assertThat(((BleuScore) new Bleu().score(answers, truths).get("BLEU")).text())
        .isEqualTo(extra.get("bleu").asText());
    for (int i = 0; i < answers.size(); i++) {
      assertThat(Bleu.sentence(answers.get(i), List.of(truths.get(i))).text())
          .isEqualTo(extra.at("/bleu_pairs/" + i + "/0").asText());
      rouge(
          extra.get("rouge_each").get(i),
          Rouge.pair(answers.get(i), truths.get(i)),
          answers.get(i));
    }
    var mean = (Map<String, RougeScore>) new Rouge().score(answers, truths).get("ROUGE");
    rouge(extra.get("rouge_avg"), mean, "mean");
  }

  private static List<String> texts(JsonNode array) {
    var result = new ArrayList<String>();
    array.forEach(each -> result.add(each.asText()));
    return result;
  }
}
