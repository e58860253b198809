package org.meteora.eval.routes;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.Function;
import java.util.function.ToIntFunction;
import java.util.regex.MatchResult;
import java.util.regex.Pattern;

/**
 * A stretch of tokens that belongs to one task.
 *
 * @param from first token
 * @param to the token after the last
 * @param label what the part is, for people
 * @param task the task, which is the name of the adapter that should dominate
 * @param output true when the model wrote it
 */
public record Part(int from, int to, String label, String task, boolean output) {

  private static final Pattern QUESTION =
      Pattern.compile("\\[INST\\].*?\\[/INST\\]", Pattern.DOTALL);
  private static final Pattern ANSWER = Pattern.compile("(?m)^(\\d{1,3})\\. [^\\n]*");

  /** Prompt and answer of one task: two parts, both expecting the task's adapter. */
  public static List<Part> single(String task, List<RoutedToken> tokens) {
    int prompt = RoutedToken.promptTokens(tokens);
    var parts = new ArrayList<Part>();
    if (prompt > 0) {
      parts.add(new Part(0, prompt, "prompt", task, false));
    }
    if (prompt < tokens.size()) {
      parts.add(new Part(prompt, tokens.size(), "answer", task, true));
    }
    return List.copyOf(parts);
  }

  /**
   * Parts of a composite prompt and its answer: every {@code [INST] … [/INST]} asks the next of the
   * tasks, starting over after the last (worked examples come first), and every line {@code i. …}
   * between and after them answers task {@code i}. What lies between parts, such as the header,
   * belongs to no task.
   *
   * @param tasks the composite's tasks in the order asked
   */
  public static List<Part> composite(List<String> tasks, List<RoutedToken> tokens) {
    return new Search(tasks, tokens).parts();
  }

  /**
   * What stands for each token of a composite prompt.
   *
   * @param numbers by task
   * @return the number of the task that the token belongs to; −1 where it belongs to none
   */
  static int[] numbers(
      List<String> tasks,
      int[] prompt,
      Function<int[], String> decode,
      ToIntFunction<String> numbers) {
    var result = new int[prompt.length];
    Arrays.fill(result, -1);
    for (var part : composite(tasks, RoutedToken.of(decode, id -> "", prompt, prompt.length))) {
      Arrays.fill(result, part.from(), part.to(), numbers.applyAsInt(part.task()));
    }
    return result;
  }

  /** Finds parts from the text's beginning to its end. */
  private static final class Search {
    final List<String> tasks;
    final int prompt;
    final StringBuilder text = new StringBuilder();
    final int[] starts; // of the tokens in the text, and its end
    final List<Part> found = new ArrayList<>();

    Search(List<String> tasks, List<RoutedToken> tokens) {
      this.tasks = tasks;
      prompt = RoutedToken.promptTokens(tokens);
      starts = new int[tokens.size() + 1];
      for (int i = 0; i < tokens.size(); i++) {
        starts[i + 1] = text.append(tokens.get(i).text()).length();
      }
    }

    List<Part> parts() {
      int questions = 0;
      int done = 0;
      // the model's answer may contain anything: only the prompt is searched for questions
      var question = QUESTION.matcher(text).region(0, starts[prompt]);
      while (question.find()) {
        answers(done, question.start());
        add(question, "question ", questions++ % tasks.size() + 1);
        done = question.end();
      }
      answers(done, starts[prompt]);
      answers(starts[prompt], text.length());
      return List.copyOf(found);
    }

    void answers(int from, int to) {
      var answer = ANSWER.matcher(text).region(from, to);
      while (answer.find()) {
        int number = Integer.parseInt(answer.group(1));
        if (number >= 1 && number <= tasks.size()) {
          add(answer, "answer ", number);
        }
      }
    }

    /** Adds the tokens that begin in a place. */
    void add(MatchResult place, String kind, int number) {
      int from = found.isEmpty() ? 0 : found.getLast().to();
      while (from < starts.length - 1 && starts[from + 1] <= place.start()) {
        from++;
      }
      int to = from;
      while (to < starts.length - 1 && starts[to] < place.end()) {
        to++;
      }
      if (to > from) {
        found.add(new Part(from, to, kind + number, tasks.get(number - 1), from >= prompt));
      }
    }
  }
}
