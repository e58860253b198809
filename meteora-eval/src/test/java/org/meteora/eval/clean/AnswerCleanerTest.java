package org.meteora.eval.clean;

import static org.assertj.core.api.Assertions.assertThat;

import org.junit.jupiter.api.Test;

class AnswerCleanerTest {
  private static final String PROMPT = "[INST] Q [/INST]\n";

  private static void check(String task, String decoded, String answer, boolean lost) {
    assertThat(AnswerCleaner.clean(task, decoded, PROMPT))
        .isEqualTo(new AnswerCleaner.Cleaned(answer, lost));
  }

  @Test
  void whatFollowsThePromptIsTheAnswer() {
    check("alpaca", PROMPT + " Yes.\n", "yes.", false);
  }

  @Test
  void everyRepetitionOfThePromptGoes() {
    check("alpaca", PROMPT + "A " + PROMPT + "B", "a \nb", false);
  }

  @Test
  void aChangedPromptIsCutAtItsEndMark() {
    check("alpaca", "[INST]  Q [/INST]\n Yes ", " yes ", true);
  }

  @Test
  void withoutAMarkTheTextStays() {
    check("alpaca", "Yes ", "Yes ", true);
  }

  @Test
  void fallaciesAreReducedToAVerdict() {
    var task = "formal_fallacies_syllogisms_negation";
    check(task, PROMPT + "It is INVALID, not valid", "invalid", false);
    check(task, PROMPT + "Valid!", "valid", false);
    check(task, PROMPT, "illegal answer", false);
  }
}
