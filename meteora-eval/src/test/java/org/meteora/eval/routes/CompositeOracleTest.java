package org.meteora.eval.routes;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import ai.djl.Device;
import java.util.List;
import java.util.stream.Collectors;
import org.junit.jupiter.api.Test;
import org.meteora.UserException;
import org.meteora.data.Sample;
import org.meteora.data.composite.CompositeMaker;
import org.meteora.moe.Router;
import org.meteora.router.Oracle;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/** Which adapter each token of a composite has; a token is a character here. */
class CompositeOracleTest {
  private static final Oracle ORACLE = new Oracle(List.of("count", "other", "turn"));
  private static final List<String> TASKS = List.of("turn", "count");

  private static CompositeOracle oracle() {
    return new CompositeOracle(ORACLE, TASKS, ids -> new String(ids, 0, ids.length));
  }

  private static int[] tokens(String text) {
    return text.codePoints().toArray();
  }

  /** A digit a token, the adapter; a dot for none. */
  private static List<String> chosen(Router router, int rows, int width) {
    try (var manager = Devices.newManager(Device.cpu())) {
      var x = Ops.zeros(manager, Dtype.F32, (long) rows * width, 2);
      var choice = ((Router.Choosing) router).choose(null, x, rows);
      return java.util.stream.IntStream.range(0, rows)
          .mapToObj(
              row ->
                  java.util.stream.IntStream.range(row * width, (row + 1) * width)
                      .mapToObj(at -> choice.weights()[at] == 0 ? "." : "" + choice.indices()[at])
                      .collect(Collectors.joining()))
          .toList();
    }
  }

  @Test
  void questionsHaveTheirTasksAdaptersAndSoHaveTheLinesOfTheAnswer() {
    var question = List.of(sample("turn AB", "BA"), sample("count C", "1"));
    var prompt =
        CompositeMaker.compose(CompositeMaker.header(List.of(question, question)), question)
            .prompt();
    var shorter = prompt.substring(prompt.lastIndexOf("[INST] turn"));
    var router = oracle().of(List.of(tokens(prompt), tokens(shorter)));
    assertThat(router.name()).isEqualTo("oracle");
    var rows = chosen(router, 2, prompt.length());
    assertThat(rows.get(0)).hasSize(prompt.length());
    var expected = new StringBuilder(".".repeat(prompt.length()));
    mark(expected, prompt, "[INST] turn AB [/INST]", '2');
    mark(expected, prompt, "[INST] count C [/INST]", '0');
    mark(expected, prompt, "1. BA", '2');
    mark(expected, prompt, "2. 1", '0');
    for (int at = prompt.lastIndexOf("[/INST]") + 7; at < prompt.length(); at++) {
      expected.setCharAt(at, '2'); // the first line of the answer comes next
    }
    assertThat(rows.get(0)).isEqualTo(expected.toString());
    int padding = prompt.length() - shorter.length();
    assertThat(rows.get(1))
        .isEqualTo(".".repeat(padding) + expected.substring(prompt.length() - shorter.length()));

    router = router.keepRows(new int[] {1, 0});
    var answers = new String[] {"1. BA\n2. 1\n3. ", "\n1. B\n2. 1   "};
    var lines = new String[] {"222220000000000", "2222200000000"};
    for (int t = 0; t < 13; t++) {
      router = router.next(new int[] {answers[0].charAt(t), answers[1].charAt(t)});
      assertThat(chosen(router, 2, 1))
          .as("%d", t)
          .containsExactly("" + lines[0].charAt(t), "" + lines[1].charAt(t));
    }
    router = router.keepRows(new int[] {1}).next(new int[] {'x'});
    assertThat(chosen(router, 1, 1)).containsExactly("0");
  }

  private static void mark(StringBuilder marks, String text, String part, char adapter) {
    for (int at = text.indexOf(part); at >= 0; at = text.indexOf(part, at + 1)) {
      for (int i = 0; i < part.length(); i++) {
        marks.setCharAt(at + i, adapter);
      }
    }
  }

  private static Sample sample(String question, String answer) {
    return new Sample("[INST] " + question + " [/INST]\n", answer);
  }

  @Test
  void aTaskWithoutAnAdapterIsNamed() {
    assertThatThrownBy(() -> new CompositeOracle(ORACLE, List.of("turn", "sort"), ids -> ""))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("no adapter is called sort");
  }
}
