package org.meteora.eval.routes;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.io.Jsonl;

/** The pages in a real headless Chromium; skipped where chromium or chromedriver is missing. */
class RoutesPageTest {
  private static final String DOWN = "\uE015";
  private static final String RIGHT = "\uE014";
  private static final String ESCAPE = "\uE00C";

  @TempDir static Path profile;
  @TempDir Path folder;
  private static Browser browser;

  @BeforeAll
  static void start() throws IOException {
    var chromium = Browser.find("chromium", "chromium-browser", "google-chrome");
    var driver = Browser.find("chromedriver");
    assumeTrue(
        chromium.isPresent() && driver.isPresent(),
        "chromium and chromedriver are not both on the path: the pages are not tested");
    browser = Browser.start(driver.get(), chromium.get(), profile);
  }

  @AfterAll
  static void stop() {
    if (browser != null) {
      browser.close();
    }
  }

  /** A composite of three tasks whose last answer is routed wrongly. */
  private static RoutingTrace composite() {
    var tasks = List.of("logical_deduction", "question_selection", "strategyqa");
    var question = new StringBuilder("Example 1:\n\n");
    for (int i = 0; i < 6; i++) {
      question.append(
          switch (i % 3) {
            case 0 ->
                "[INST] The following paragraphs each describe a set of three objects arranged in a"
                    + " fixed order. Ana finished above Joe. Which choice is correct?\n"
                    + "choice: Ana finished second.\n"
                    + "choice: Joe finished last.\n"
                    + "[/INST]\n\n";
            case 1 ->
                "[INST] Given a short answer along with its context, select the most appropriate"
                    + " question.\n"
                    + "Short Answer: two months\n"
                    + "choice: How long did it take?\n"
                    + "[/INST]\n\n";
            default -> "[INST] Q: Can Hulk's alter ego explain atomic events?\nA: [/INST]\n\n";
          });
      if (i == 2) {
        question.append(
            "1. Ana finished second.\n"
                + "2. How long did it take?\n"
                + "3. Yes.\n\n"
                + "Go on in the same way.\n\n");
      }
    }
    var tokens =
        Traces.words(
            question.toString(),
            "1. Joe finished last.\n2. How long did it take?\n3. Yes, he is a nuclear physicist.");
    var parts = Part.composite(tasks, tokens);
    var right = Traces.expected(parts, Traces.TASKS);
    int last = parts.getLast().from();
    return Traces.trace(
        Traces.TASKS, tokens, parts, 4, t -> t >= last ? 1 : right.applyAsInt(t), 7);
  }

  private void keep(String name) throws IOException {
    var screenshots = System.getProperty("meteora.screenshots");
    if (screenshots != null) {
      Files.write(Path.of(screenshots, name + ".png"), browser.screenshot());
    }
  }

  /** Lines that come into view get their true heights then, which may move a token once more. */
  private void hoverToken(int token) throws IOException {
    for (int attempt = 0; attempt < 10; attempt++) {
      browser.hover(".t[data-i='" + token + "']");
      if (browser
              .script("return document.querySelector('#tip:not([hidden])')?.dataset.token")
              .asInt(-1)
          == token) {
        return;
      }
    }
    throw new AssertionError("token " + token + " shows no tooltip");
  }

  private void assertQuiet() throws IOException {
    assertThat(browser.log()).isEmpty();
  }

  private Map<Integer, Double> tip() throws IOException {
    var rows =
        browser.script(
            "return [...document.querySelectorAll('#tip:not([hidden]) .row')].map(r =>"
                + " [+r.dataset.adapter, parseFloat(r.querySelector('.n').textContent)])");
    return Jsonl.JSON.convertValue(rows, double[][].class).length == 0
        ? Map.of()
        : java.util.Arrays.stream(Jsonl.JSON.convertValue(rows, double[][].class))
            .collect(Collectors.toMap(row -> (int) row[0], row -> row[1] / 100));
  }

  @Test
  void hoverShowsTheNumbersOfTheJson() throws Exception {
    var trace = composite();
    Routes.write(trace, "Composite of three tasks", folder);
    browser.colourScheme("light");
    browser.open(folder.resolve("routes.html"));
    var json = Jsonl.readFile(folder.resolve("routes.json"));
    for (int token : new int[] {0, 40, trace.promptTokens() + 3}) {
      hoverToken(token);
      var shown = tip();
      assertThat(shown).hasSizeBetween(2, 10);
      var shares = json.at("/tokens/" + token + "/shares");
      shown.forEach(
          (adapter, share) ->
              assertThat(share)
                  .isCloseTo(
                      shares.get(trace.adapters().get(adapter)).doubleValue(), within(0.00052)));
    }
    keep("light");
    // one layer and module: two adapters, as in the raw data
    browser.script(
        "for (const [id, v] of [['layer', 2], ['module', 5]]) { const s ="
            + " document.getElementById(id); s.value = v; s.dispatchEvent(new Event('change')) }");
    hoverToken(11);
    var gate = json.at("/routing/2/up_proj");
    assertThat(tip().keySet())
        .containsExactlyInAnyOrder(
            gate.at("/indices/11/0").intValue(), gate.at("/indices/11/1").intValue());
    assertThat(tip().get(gate.at("/indices/11/0").intValue()))
        .isCloseTo(gate.at("/weights/11/0").doubleValue(), within(0.00052));
    assertQuiet();
  }

  @Test
  void filterPartsAndKeysWork() throws Exception {
    var trace = composite();
    Routes.write(trace, "Composite of three tasks", folder);
    browser.colourScheme("dark");
    browser.open(folder.resolve("routes.html"));
    keep("dark");
    var verdicts =
        browser.script(
            "return [...document.querySelectorAll('#parts tr')].map(r => r.lastChild.textContent)");
    assertThat(verdicts).hasSize(trace.parts().size());
    for (int i = 0; i < verdicts.size(); i++) {
      assertThat(verdicts.get(i).textValue().startsWith("✓"))
          .isEqualTo(trace.verdicts().get(i).right());
    }
    assertThat(verdicts.get(verdicts.size() - 1).textValue()).isEqualTo("✗ other");
    int adapter = Traces.TASKS.indexOf("strategyqa");
    browser.click("#legend button[data-adapter='" + adapter + "']");
    long dominated = 0;
    for (int t = 0; t < trace.routedTokens(); t++) {
      var shares = trace.shares(RoutingTrace.ALL, RoutingTrace.ALL, t);
      dominated += RoutingTrace.dominant(shares) == adapter ? 1 : 0;
    }
    assertThat(
            browser.script("return document.querySelectorAll('.filtered .t.on').length").asLong())
        .isEqualTo(dominated)
        .isPositive();
    keep("filtered");
    browser.script("document.querySelector('.t[data-i=\"3\"]').focus()");
    browser.keys(RIGHT + RIGHT + DOWN);
    assertThat(browser.script("return +document.activeElement.dataset.i").asInt()).isGreaterThan(5);
    assertThat(tip()).isNotEmpty();
    keep("focus");
    browser.keys("n");
    var starts = trace.parts().stream().map(Part::from).toList();
    assertThat(browser.script("return +document.activeElement.dataset.i").asInt()).isIn(starts);
    browser.keys(ESCAPE + ESCAPE);
    assertThat(browser.script("return document.body.classList.contains('filtered')").asBoolean())
        .isFalse();
    browser.keys("]");
    assertThat(browser.script("return document.getElementById('layer').value").asText())
        .isEqualTo("0");
    assertQuiet();
  }

  @Test
  void hostileAndSplitTextIsOnlyText() throws Exception {
    var text =
        "</script><script>document.title='bad'</script><img src=x onerror=\"document.title='bad'\">"
            + "{{data}} <!--<script> &amp; €😀\u2028日本\n";
    var tokens = Traces.byteTokens(text + "é!", Traces.bytes(text).length);
    var names = List.of("<b>bold</b>", "</script>", "c");
    var parts = Part.single("<b>bold</b>", tokens);
    var trace = Traces.trace(names, tokens, parts, 2, t -> 1, 5);
    Routes.write(trace, "<i>title</i></title>", folder);
    browser.open(folder.resolve("routes.html"));
    assertThat(browser.script("return document.title").asText()).isEqualTo("<i>title</i></title>");
    assertThat(
            browser
                .script(
                    "return [...document.querySelectorAll('.t')].map(t => t.textContent).join('')")
                .asText())
        .isEqualTo(text + "é!");
    assertThat(browser.script("return document.querySelectorAll('img, b').length").asInt())
        .isZero();
    assertThat(browser.script("return document.querySelectorAll('.t.part').length").asInt())
        .isEqualTo(2 + 3 + 2 + 2 + 2 + 1);
    int euro = Traces.bytes(text.substring(0, text.indexOf('€'))).length;
    hoverToken(euro + 1);
    assertThat(browser.script("return document.getElementById('tip').textContent").asText())
        .contains("€ (its rest)", "<0x82>");
    keep("hostile");
    assertQuiet();
  }

  @Test
  void aLongPromptStaysSmallAndPaintsSoon() throws Exception {
    var line = "The quick brown fox jumps over the lazy dog and runs away, twice or more often.\n";
    var tokens = Traces.words(line.repeat(300), "").subList(0, 4096);
    var trace =
        Traces.trace(Traces.TASKS, tokens, Part.single("gsm8k", tokens), 32, t -> t / 400, 9);
    RoutesHtml.write(trace, "4,096 tokens", folder.resolve("routes.html"));
    long size = Files.size(folder.resolve("routes.html"));
    assertThat(size).isLessThan(5_000_000);
    browser.open(folder.resolve("routes.html"));
    double paint =
        browser
            .script("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
            .asDouble();
    double coloured =
        browser.script("return performance.getEntriesByName('coloured')[0].startTime").asDouble();
    double turn =
        browser
            .script(
                "const s = document.getElementById('layer'), a = performance.now(); s.value = 3;"
                    + " s.dispatchEvent(new Event('change')); document.body.offsetHeight; return"
                    + " performance.now() - a")
            .asDouble();
    System.out.printf(
        "4096 tokens: %d bytes, first paint %.0f ms, coloured %.0f ms, another layer %.0f ms%n",
        size, paint, coloured, turn);
    assertThat(paint).isLessThan(2000);
    hoverToken(4000);
    double first = tip().values().stream().max(Double::compare).orElseThrow();
    var shares = trace.shares(3, RoutingTrace.ALL, 4000);
    assertThat(first).isCloseTo(shares[RoutingTrace.dominant(shares)], within(0.003));
    keep("long");
    assertQuiet();
  }

  @Test
  void theMatrixPageShowsItsNumbers() throws Exception {
    var matrix = new RoutingMatrix(Traces.TASKS);
    var random = new java.util.Random(3);
    for (var task : Traces.TASKS.subList(0, 12)) {
      var listener = matrix.listener(task);
      for (int gate = 0; gate < 14; gate++) {
        var indices = new int[100];
        var weights = new float[100];
        for (int t = 0; t < 50; t++) {
          indices[2 * t] = random.nextInt(5) < 3 ? Traces.TASKS.indexOf(task) : random.nextInt(28);
          indices[2 * t + 1] = (indices[2 * t] + 1 + random.nextInt(27)) % 28;
          weights[2 * t] = 0.5f + random.nextFloat() / 2;
          weights[2 * t + 1] = 1 - weights[2 * t];
        }
        listener.onRouting(gate / 7, gate % 7, 1, 50, 2, indices, weights);
      }
    }
    matrix.write("Routing of an evaluation", Map.of(), folder);
    browser.colourScheme("light");
    browser.open(folder.resolve("routing.html"));
    browser.script(
        "const s = document.getElementById('module'); s.value = 2; s.dispatchEvent(new"
            + " Event('change'))");
    var shares = matrix.shares("cs_algorithms", RoutingTrace.ALL, 2);
    for (int a = 0; a < 28; a++) {
      assertThat(
              browser
                  .script(
                      "return +document.querySelector('td[data-task=\"4\"][data-adapter=\"' +"
                          + " arguments[0] + '\"]').dataset.value",
                      a)
                  .asDouble())
          .isCloseTo(shares[a], within(1e-4));
    }
    keep("matrix");
    assertQuiet();
  }
}
