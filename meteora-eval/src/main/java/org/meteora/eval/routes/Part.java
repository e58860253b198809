package org.meteora.eval.routes;

import java.util.ArrayList;
import java.util.List;
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
    int prompt = promptTokens(tokens);
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
    var text = new StringBuilder();
    var starts = new int[tokens.size() + 1];
    for (int i = 0; i < tokens.size(); i++) {
      starts[i] = text.length();
      text.append(tokens.get(i).text());
    }
    starts[tokens.size()] = text.length();
    int prompt = promptTokens(tokens);
    int questions = 0;
    int done = 0;
    var parts = new ArrayList<Part>();
    // the model's answer may contain anything: only the prompt is searched for questions
    var question = QUESTION.matcher(text).region(0, starts[prompt]);
    while (question.find()) {
      answers(tasks, text, done, question.start(), starts, prompt, parts);
      int task = questions % tasks.size();
      add(
          parts,
          starts,
          question.start(),
          question.end(),
          "question " + (task + 1),
          tasks.get(task),
          prompt);
      questions++;
      done = question.end();
    }
    answers(tasks, text, done, starts[prompt], starts, prompt, parts);
    answers(tasks, text, starts[prompt], text.length(), starts, prompt, parts);
    return List.copyOf(parts);
  }

  private static void answers(
      List<String> tasks,
      CharSequence text,
      int from,
      int to,
      int[] starts,
      int prompt,
      List<Part> parts) {
    var answer = ANSWER.matcher(text).region(from, to);
    while (answer.find()) {
      int number = Integer.parseInt(answer.group(1));
      if (number >= 1 && number <= tasks.size()) {
        var task = tasks.get(number - 1);
        add(parts, starts, answer.start(), answer.end(), "answer " + number, task, prompt);
      }
    }
  }

  /** The tokens that begin in the text between two characters. */
  private static void add(
      List<Part> parts,
      int[] starts,
      int fromChar,
      int toChar,
      String label,
      String task,
      int prompt) {
    int from = parts.isEmpty() ? 0 : parts.getLast().to();
    while (from < starts.length - 1 && starts[from + 1] <= fromChar) {
      from++;
    }
    int to = from;
    while (to < starts.length - 1 && starts[to] < toChar) {
      to++;
    }
    if (to > from) {
      parts.add(new Part(from, to, label, task, from >= prompt));
    }
  }

  private static int promptTokens(List<RoutedToken> tokens) {
    int prompt = 0;
    while (prompt < tokens.size() && !tokens.get(prompt).output()) {
      prompt++;
    }
    return prompt;
  }
}
