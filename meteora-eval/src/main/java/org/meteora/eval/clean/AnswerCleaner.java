package org.meteora.eval.clean;

import java.util.Locale;
import org.meteora.data.Texts;

/**
 * Finds the answer in the decoded text of prompt and answer, and puts it in the form that is
 * scored: lower case, trimmed.
 */
public final class AnswerCleaner {
  private static final String END_OF_PROMPT = "[/INST]\n";
  private static final String FALLACIES = "formal_fallacies_syllogisms_negation";

  private AnswerCleaner() {}

  /**
   * @param text the answer to score
   * @param promptLost the decoded text does not repeat the prompt exactly, the answer was found by
   *     the prompt's end mark, or not at all
   */
  public record Cleaned(String text, boolean promptLost) {}

  /**
   * Cleans one output.
   *
   * @param task the task's name; one task has a rule of its own
   * @param decoded text of the prompt's and the new tokens, special tokens left out
   * @param prompt the prompt as it is in the data
   */
  public static Cleaned clean(String task, String decoded, String prompt) {
    boolean lost = !decoded.contains(prompt);
    String text;
    if (!lost) {
      var bare = Texts.strip(prompt);
      var rest = Texts.strip(decoded);
      text = Texts.strip(bare.isEmpty() ? rest : rest.replace(bare, "")).toLowerCase(Locale.ROOT);
    } else {
      int end = decoded.lastIndexOf(END_OF_PROMPT);
      text =
          end < 0
              ? decoded
              : decoded.substring(end + END_OF_PROMPT.length()).toLowerCase(Locale.ROOT);
    }
    return new Cleaned(task.equals(FALLACIES) ? verdict(text) : text, lost);
  }

  /** "invalid" holds "valid", so it is looked for first. */
  private static String verdict(String text) {
    if (text.contains("invalid")) {
      return "invalid";
    }
    return text.contains("valid") ? "valid" : "illegal answer";
  }
}
