package org.meteora.eval.metric;

import com.fasterxml.jackson.annotation.JsonProperty;
import java.util.List;
import org.meteora.data.PythonText;

/**
 * Signs that a score may not mean what it seems to.
 *
 * @param emptyAnswers answers without a character
 * @param tooLongAnswers answers of more than twice the truth's words
 * @param promptsLost outputs that do not repeat their prompt exactly
 */
public record Warnings(
    @JsonProperty("empty_answers") int emptyAnswers,
    @JsonProperty("too_long_answers") int tooLongAnswers,
    @JsonProperty("prompts_lost") int promptsLost) {
  public static Warnings of(List<String> answers, List<String> truths, int promptsLost) {
    int empty = 0;
    int tooLong = 0;
    for (int i = 0; i < answers.size(); i++) {
      empty += answers.get(i).isEmpty() ? 1 : 0;
      boolean longer =
          PythonText.words(answers.get(i)).size() > 2 * PythonText.words(truths.get(i)).size();
      tooLong += longer ? 1 : 0;
    }
    return new Warnings(empty, tooLong, promptsLost);
  }
}
