package org.meteora.train.batch;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import java.util.concurrent.atomic.AtomicInteger;
import org.meteora.UserException;
import org.meteora.generate.Tokenizer;
import org.meteora.io.Jsonl;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * A task's samples, tokenised and split into training and evaluation.
 *
 * @param train samples to learn from
 * @param eval samples held out
 */
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

  /**
   * Reads a task file, {@code {"prompt": …, "response": …}} a line, and splits it: shuffled with
   * the seed, the last {@code evalRatio} of it is held out (at least one sample of each part when
   * there are two or more and the ratio is not zero). Prompt and response are encoded on their own,
   * without special tokens, and joined.
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
    var all = new ArrayList<TrainingSample>();
    var cut = new AtomicInteger();
    var dropped = new AtomicInteger();
    Jsonl.forEach(
        file,
        (node, line) -> {
          var where = file + ":" + line;
          var prompt = tokenizer.encode(Jsonl.text(node, "prompt", where), false);
          var response = tokenizer.encode(Jsonl.text(node, "response", where), false);
          int end = tokenization.endToken() >= 0 ? 1 : 0;
          var tokens = new int[prompt.length + response.length + end];
          System.arraycopy(prompt, 0, tokens, 0, prompt.length);
          System.arraycopy(response, 0, tokens, prompt.length, response.length);
          if (end == 1) {
            tokens[tokens.length - 1] = tokenization.endToken();
          }
          if (tokens.length > tokenization.maxLength()) {
            tokens = java.util.Arrays.copyOf(tokens, tokenization.maxLength());
            cut.incrementAndGet();
          }
          if (tokens.length < (tokenization.responseOnly() ? Math.max(2, prompt.length + 1) : 2)) {
            dropped.incrementAndGet(); // nothing to predict
            return;
          }
          all.add(
              new TrainingSample(
                  name + ":" + line, tokens, Math.min(prompt.length, tokens.length), task));
        });
    if (cut.get() > 0) {
      LOG.info("{}: {} samples cut to {} tokens", name, cut, tokenization.maxLength());
    }
    if (dropped.get() > 0) {
      LOG.warn(
          "{}: {} samples with nothing to predict within {} tokens left out",
          name,
          dropped,
          tokenization.maxLength());
    }
    if (all.isEmpty()) {
      throw new UserException(
          file + ": no samples to train on (of at most " + tokenization.maxLength() + " tokens)");
    }
    Collections.shuffle(all, new Random(Batches.mix(seed, name.hashCode())));
    int held = (int) Math.round(all.size() * evalRatio);
    if (evalRatio > 0 && all.size() > 1) {
      held = Math.clamp(held, 1, all.size() - 1);
    }
    int kept = all.size() - held;
    return new TaskSamples(
        List.copyOf(all.subList(0, kept)), List.copyOf(all.subList(kept, all.size())));
  }
}
