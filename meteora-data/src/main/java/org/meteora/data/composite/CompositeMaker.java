package org.meteora.data.composite;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import org.meteora.UserException;
import org.meteora.data.Sample;

/** Makes composite samples: several tasks' prompts behind a header, and their answers joined. */
public final class CompositeMaker {
  private CompositeMaker() {}

  /**
   * The header of an existing composite file: the text all its prompts share, cut before its last
   * {@code [INST]}.
   *
   * @throws UserException when the prompts share no header
   */
  public static String headerOf(List<Sample> samples) {
    var shared = samples.getFirst().prompt();
    for (var sample : samples) {
      int length = 0;
      int maximum = Math.min(shared.length(), sample.prompt().length());
      while (length < maximum && shared.charAt(length) == sample.prompt().charAt(length)) {
        length++;
      }
      shared = shared.substring(0, length);
    }
    int cut = shared.lastIndexOf("[INST]");
    var whole = shared;
    if (samples.stream().allMatch(sample -> sample.prompt().equals(whole))) {
      throw new UserException(
          "a header can be told from what follows it only in a file with different prompts");
    }
    if (cut < 0) {
      throw new UserException(
          "the prompts share no header: no [INST] in the text they have in common");
    }
    return shared.substring(0, cut);
  }

  /**
   * The toolkit's own header: two worked examples and a line asking to go on.
   *
   * @param examples for each of two examples, one sample a task
   */
  public static String header(List<List<Sample>> examples) {
    var text = new StringBuilder();
    for (int i = 0; i < examples.size(); i++) {
      text.append("\nExample ").append(i + 1).append(":\n\n");
      for (var sample : examples.get(i)) {
        text.append(sample.prompt()).append('\n');
      }
      int number = 1;
      for (var sample : examples.get(i)) {
        text.append(number++)
            .append(". ")
            .append(sample.response().replaceAll("\\s*\\R\\s*", " ").strip())
            .append('\n');
      }
    }
    return text.append(
            "\nAnswer the following questions in the same way, one numbered line for each:\n\n\n")
        .toString();
  }

  /**
   * One sample: the header, each task's prompt followed by two newlines (less the very last), the
   * answers joined.
   */
  public static Sample compose(String header, List<Sample> parts) {
    var prompt = new StringBuilder(header);
    parts.forEach(part -> prompt.append(part.prompt()).append("\n\n"));
    prompt.setLength(prompt.length() - 1);
    return new Sample(
        prompt.toString(),
        String.join(CompositeTask.SEPARATOR, parts.stream().map(Sample::response).toList()));
  }

  /**
   * @param samples for each task, in the tasks' order
   * @param nums how many; a task with fewer samples is used again from its beginning
   * @param shuffle draw each task's samples with the seed; otherwise in file order
   */
  public static List<Sample> make(
      String header, List<List<Sample>> samples, int nums, boolean shuffle, long seed) {
    var ordered = new ArrayList<List<Sample>>();
    for (int t = 0; t < samples.size(); t++) {
      var own = new ArrayList<>(samples.get(t));
      if (shuffle) {
        Collections.shuffle(own, new Random(seed + t));
      }
      ordered.add(own);
    }
    var result = new ArrayList<Sample>();
    for (int i = 0; i < nums; i++) {
      int index = i;
      result.add(
          compose(header, ordered.stream().map(own -> own.get(index % own.size())).toList()));
    }
    return result;
  }
}
