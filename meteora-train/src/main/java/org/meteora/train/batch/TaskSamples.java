package org.meteora.train.batch;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Optional;
import java.util.Random;
import org.meteora.UserException;
import org.meteora.generate.Tokenizer;
import org.meteora.io.Jsonl;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** A task's samples, tokenised and split into training and evaluation. */
public record TaskSamples(List<TrainingSample> train, List<TrainingSample> eval) {
  private static final Logger LOG = LoggerFactory.getLogger(TaskSamples.class);

  /**
   * How texts become tokens.
   *
   * @param maxLength most tokens of a sample; the rest is cut off
   * @param responseOnly samples whose response is cut off whole are left out: they would teach
   *     nothing
   * @param endToken appended to every sample as its last token; −1 for none (as the paper trains)
   */
  public record Tokenization(int maxLength, int endToken, boolean responseOnly) {}

  /** Lines whose texts are kept while they are encoded. */
  private static final int AT_ONCE = 4096;

  /**
   * Reads a task file, {@code {"prompt": …, "response": …}} a line, and splits it: its lines are
   * shuffled with the seed, and the last {@code evalRatio} of them are held out (at least one line
   * of each part when there are two or more and the ratio is not zero). Lines with nothing to
   * predict are left out after that, so that which ones are held out does not depend on how they
   * are tokenised. If no other sample is left, the first one held out is trained on. Prompt and
   * response are encoded on their own, without special tokens, and joined.
   *
   * @param name the task's name, for sample ids
   * @param task the task's adapter index
   * @throws UserException when the file is missing, malformed, or holds nothing to learn from
   */
  public static TaskSamples read(
      Path file,
      String name,
      int task,
      Tokenizer tokenizer,
      Tokenization tokenization,
      double evalRatio,
      long seed) {
    var lines = new ArrayList<Line>();
    var texts = new ArrayList<Text>();
    Runnable encode =
        () -> {
          texts.parallelStream()
              .map(text -> text.encode(name, task, tokenizer, tokenization))
              .forEachOrdered(lines::add);
          texts.clear();
        };
    Jsonl.forEach(
        file,
        (node, line) -> {
          var where = file + ":" + line;
          texts.add(
              new Text(
                  line, Jsonl.text(node, "prompt", where), Jsonl.text(node, "response", where)));
          if (texts.size() == AT_ONCE) {
            encode.run();
          }
        });
    encode.run();
    int most = tokenization.maxLength();
    long cut = lines.stream().filter(Line::isCut).count();
    if (cut > 0) {
      LOG.info("{}: {} samples cut to {} tokens", name, cut, most);
    }
    long dropped = lines.stream().filter(line -> line.sample().isEmpty()).count();
    if (dropped > 0) {
      LOG.warn(
          "{}: {} samples with nothing to predict within {} tokens left out", name, dropped, most);
    }
    if (lines.size() == dropped) {
      throw new UserException(file + ": no samples to train on (of at most " + most + " tokens)");
    }
    Collections.shuffle(lines, new Random(Batches.mix(seed, name.hashCode())));
    int held =
        evalRatio == 0
            ? 0
            : Math.clamp(
                Math.round(lines.size() * evalRatio),
                Math.min(1, lines.size() - 1),
                lines.size() - 1);
    int kept = lines.size() - held;
    var train = new ArrayList<>(samples(lines.subList(0, kept)));
    var eval = new ArrayList<>(samples(lines.subList(kept, lines.size())));
    if (train.isEmpty()) {
      train.add(eval.removeFirst());
    }
    return new TaskSamples(List.copyOf(train), List.copyOf(eval));
  }

  /** A line's sample; none where there is nothing to predict. */
  private record Line(Optional<TrainingSample> sample, boolean isCut) {}

  private record Text(int line, String prompt, String response) {
    Line encode(String name, int task, Tokenizer tokenizer, Tokenization how) {
      var prompt = tokenizer.encode(this.prompt, false);
      var response = tokenizer.encode(this.response, false);
      int end = how.endToken() >= 0 ? 1 : 0;
      var tokens = Arrays.copyOf(prompt, prompt.length + response.length + end);
      System.arraycopy(response, 0, tokens, prompt.length, response.length);
      if (end == 1) {
        tokens[tokens.length - 1] = how.endToken();
      }
      boolean cut = tokens.length > how.maxLength();
      if (cut) {
        tokens = Arrays.copyOf(tokens, how.maxLength());
      }
      int least = how.responseOnly() ? Math.max(2, prompt.length + 1) : 2;
      if (tokens.length < least) {
        return new Line(Optional.empty(), cut);
      }
      int prompts = Math.min(prompt.length, tokens.length);
      var sample = new TrainingSample(name + ":" + line, tokens, prompts, task);
      return new Line(Optional.of(sample), cut);
    }
  }

  private static List<TrainingSample> samples(List<Line> lines) {
    return lines.stream().flatMap(line -> line.sample().stream()).toList();
  }
}
