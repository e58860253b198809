package org.meteora.eval.statistics;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.meteora.eval.EvalTask;
import org.meteora.io.Jsonl;

/** Against SciPy, sacreBLEU and rouge on fixed resamples (scripts/make-comparison-fixture.py). */
class BootstrapTest {
  private static JsonNode reference;
  private static List<HashMap<String, Figure>> systems;

  @BeforeAll
  static void read() throws IOException {
    try (var in = BootstrapTest.class.getResourceAsStream("/statistics/reference.json")) {
      reference = Jsonl.JSON.readTree(in);
    }
    systems = new ArrayList<>();
    for (var system : reference.get("systems")) {
      var byName = new HashMap<String, Figure>();
      EvalTask.of("strategyqa")
          .figures(texts(system), texts(reference.get("truths")))
          .get("strategyqa")
          .forEach(figure -> byName.put(figure.name(), figure));
      systems.add(byName);
    }
  }

  private static List<String> texts(JsonNode array) {
    var result = new ArrayList<String>();
    array.forEach(each -> result.add(each.asText()));
    return result;
  }

  private static void fill(int resample, int[] samples) {
    for (int i = 0; i < samples.length; i++) {
      samples[i] = reference.get("draws").get(resample).get(i).asInt();
    }
  }

  @Test
  void scoresIntervalsAndDifferencesAreScipys() {
    for (var entry : reference.get("expected").properties()) {
      var name = entry.getKey();
      var figures = List.of(systems.get(0).get(name), systems.get(1).get(name));
      var resampled = Bootstrap.scores(figures, reference.get("draws").size(), BootstrapTest::fill);
      var difference = new double[resampled[0].length];
      for (int i = 0; i < difference.length; i++) {
        difference[i] = resampled[1][i] - resampled[0][i];
      }
      for (int s = 0; s < 2; s++) {
        assertThat(figures.get(s).score())
            .as(name)
            .isCloseTo(entry.getValue().get("scores").get(s).asDouble(), within(1e-9));
        check(name, resampled[s], entry.getValue().get("intervals").get(s));
      }
      check(name + " difference", difference, entry.getValue().get("difference"));
    }
    assertThat(reference.get("expected").size()).isEqualTo(5);
  }

  private static void check(String name, double[] resampled, JsonNode expected) {
    var interval = Interval.percentile(resampled);
    assertThat(interval.low()).as(name).isCloseTo(expected.get(0).asDouble(), within(1e-9));
    assertThat(interval.high()).as(name).isCloseTo(expected.get(1).asDouble(), within(1e-9));
  }

  @Test
  void mcNemarIsTheBinomialTest() {
    for (var row : reference.get("mcnemar")) {
      int b = row.get(0).asInt();
      int c = row.get(1).asInt();
      assertThat(McNemar.exact(b, c)).isCloseTo(row.get(2).asDouble(), within(1e-9));
      assertThat(McNemar.exact(c, b)).isEqualTo(McNemar.exact(b, c));
    }
  }

  @Test
  void drawsDependOnSeedTaskAndNumberAlone() {
    var a = new int[50];
    var b = new int[50];
    Bootstrap.seeded(1, "x").fill(7, a);
    Bootstrap.seeded(1, "x").fill(7, b);
    assertThat(a).isEqualTo(b);
    Bootstrap.seeded(1, "y").fill(7, b);
    assertThat(a).isNotEqualTo(b);
    Bootstrap.seeded(2, "x").fill(7, b);
    assertThat(a).isNotEqualTo(b);
    Bootstrap.seeded(1, "x").fill(8, b);
    assertThat(a).isNotEqualTo(b);
  }

  /** A share's bootstrap error is the binomial's, √(p (1 − p) / n). */
  @Test
  void aSharesIntervalIsAsWideAsTheBinomials() {
    var random = new Random(3);
    var right = random.ints(400, 0, 4).mapToDouble(i -> i == 0 ? 0 : 1).toArray();
    var figure = Figure.mean("Accuracy", right);
    var resampled =
        Bootstrap.scores(List.of(figure), Bootstrap.RESAMPLES, Bootstrap.seeded(42, "t"))[0];
    var interval = Interval.percentile(resampled);
    double p = figure.score();
    double expected = 2 * 1.96 * Math.sqrt(p * (1 - p) / right.length);
    assertThat(interval.high() - interval.low()).isCloseTo(expected, within(0.05 * expected));
    assertThat(interval.contains(p)).isTrue();
  }

  @Test
  void nothingToScoreHasNoInterval() {
    var figure = Figure.mean("ROUGE-L", new double[] {Double.NaN, Double.NaN});
    assertThat(figure.score()).isNaN();
    var resampled = Bootstrap.scores(List.of(figure), 20, Bootstrap.seeded(1, "t"))[0];
    assertThat(Interval.percentile(resampled).low()).isNaN();
  }
}
