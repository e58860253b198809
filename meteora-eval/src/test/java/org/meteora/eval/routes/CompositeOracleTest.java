package org.meteora.eval.routes;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.List;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.meteora.UserException;
import org.meteora.data.Sample;
import org.meteora.data.composite.CompositeMaker;
import org.meteora.moe.SequenceRouter;
import org.meteora.router.Oracle;

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
  private static String chosen(SequenceRouter router, int first, int tokens) {
    var choice = router.choose(first, tokens);
    return IntStream.range(0, tokens)
        .mapToObj(at -> choice.weights()[at] == 0 ? "." : "" + choice.indices()[at])
        .collect(Collectors.joining());
  }

  @Test
  void questionsHaveTheirTasksAdaptersAndSoHaveTheLinesOfTheAnswer() {
    var question = List.of(sample("turn AB", "BA"), sample("count C", "1"));
    var prompt =
        CompositeMaker.compose(CompositeMaker.header(List.of(question, question)), question)
            .prompt();
    var shorter = prompt.substring(prompt.lastIndexOf("[INST] turn"));
    assertThat(oracle().name()).isEqualTo("oracle");
    var router = oracle().of(tokens(prompt));
    var chosen = chosen(router, 0, prompt.length());
    var expected = new StringBuilder(".".repeat(prompt.length()));
    mark(expected, prompt, "[INST] turn AB [/INST]", '2');
    mark(expected, prompt, "[INST] count C [/INST]", '0');
    mark(expected, prompt, "1. BA", '2');
    mark(expected, prompt, "2. 1", '0');
    for (int at = prompt.lastIndexOf("[/INST]") + 7; at < prompt.length(); at++) {
      expected.setCharAt(at, '2'); // the first line of the answer comes next
    }
    assertThat(chosen).isEqualTo(expected.toString());
    assertThat(chosen(router, 100, 30)).isEqualTo(expected.substring(100, 130));
    int padding = prompt.length() - shorter.length();
    assertThat(chosen(oracle().of(tokens(shorter)), -padding, prompt.length()))
        .isEqualTo(".".repeat(padding) + expected.substring(padding));

    var answers = new String[] {"1. BA\n2. 1\n3. ", "\n1. B\n2. 1   "};
    var lines = new String[] {"222220000000000", "2222200000000"};
    for (int i = 0; i < answers.length; i++) {
      var its = router;
      for (int t = 0; t < 13; t++) {
        its = its.next(answers[i].charAt(t));
        assertThat(chosen(its, prompt.length() + t, 1)).isEqualTo("" + lines[i].charAt(t));
      }
      // prompt and answer run again as one
      assertThat(chosen(its, 0, prompt.length() + 13))
          .isEqualTo(expected + lines[i].substring(0, 13));
    }
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
