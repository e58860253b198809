package org.meteora.eval.clean;

import java.util.Locale;
import org.meteora.data.PythonText;
import org.meteora.data.tasks.Tasks;

/**
 * Finds the answer in the decoded text of prompt and answer, and puts it in the form that is
 * scored: lower case, trimmed.
 */
public final class AnswerCleaner {
  private static final String END_OF_PROMPT = "[/INST]\n";

  private AnswerCleaner() {}

  /**
   * @param promptLost the decoded text does not repeat the prompt exactly, the answer was found by
   *     the prompt's end mark, or not at all
   */
  public record Cleaned(String text, boolean promptLost) {}

  /**
   * @param task the task's name, whose normaliser is applied
   * @param decoded text of the prompt's and the new tokens, special tokens left out
   * @param prompt the prompt as it is in the data
   */
  public static Cleaned clean(String task, String decoded, String prompt) {
    boolean lost = !decoded.contains(prompt);
    String text;
    if (!lost) {
      var bare = PythonText.strip(prompt);
      var rest = PythonText.strip(decoded);
      text =
          PythonText.strip(bare.isEmpty() ? rest : rest.replace(bare, "")).toLowerCase(Locale.ROOT);
    } else {
      int end = decoded.lastIndexOf(END_OF_PROMPT);
      text =
          end < 0
              ? decoded
              : decoded.substring(end + END_OF_PROMPT.length()).toLowerCase(Locale.ROOT);
    }
    var answer = text;
    return new Cleaned(
        Tasks.find(task).map(known -> known.normaliser().apply(answer)).orElse(answer), lost);
  }
}
