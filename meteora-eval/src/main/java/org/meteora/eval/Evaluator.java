package org.meteora.eval;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.Optional;
import java.util.function.Consumer;
import org.meteora.UserException;
import org.meteora.data.Sample;
import org.meteora.eval.clean.AnswerCleaner;
import org.meteora.generate.GenerationConfig;
import org.meteora.generate.TokenGenerator;
import org.meteora.io.Progress;
import org.meteora.moe.RoutingListener;

/**
 * Has a model answer a task's prompts. Batches are made of prompts of about the same length, sorted
 * inside windows of the data, so that little is padded and progress stays even; the answers come
 * back in the data's order. Greedy answers do not depend on the batching; sampled ones do.
 */
public final class Evaluator {
  private static final int BATCHES_IN_WINDOW = 32;

  private final TokenGenerator generator;
  private final TextCodec codec;
  private final GenerationConfig config;
  private final int batchSize;
  private final Optional<BatchObserver> observer;
  private final Consumer<RoutingListener> routing;

  /** The answers in the order of the samples, skipped ones among them, and how fast they came. */
  public record Run(List<Answer> answers, Throughput throughput) {}

  private record Prompt(int index, int[] ids) {}

  /**
   * @param config its {@code maxLength} is the limit of prompt and answer together; longer prompts
   *     are skipped
   * @param batchSize prompts at a time, at least 1
   */
  public Evaluator(
      TokenGenerator generator, TextCodec codec, GenerationConfig config, int batchSize) {
    this(generator, codec, config, batchSize, Optional.empty(), listener -> {});
  }

  private Evaluator(
      TokenGenerator generator,
      TextCodec codec,
      GenerationConfig config,
      int batchSize,
      Optional<BatchObserver> observer,
      Consumer<RoutingListener> routing) {
    if (batchSize < 1) {
      throw new UserException("the batch size must be at least 1, not " + batchSize);
    }
    this.generator = generator;
    this.codec = codec;
    this.config = config;
    this.batchSize = batchSize;
    this.observer = observer;
    this.routing = routing;
  }

  /**
   * The same evaluator, watched.
   *
   * @param routing sets the model's routing listener ({@code llama::setRoutingListener}); gets null
   *     after each batch
   */
  public Evaluator observedBy(BatchObserver observer, Consumer<RoutingListener> routing) {
    return new Evaluator(generator, codec, config, batchSize, Optional.of(observer), routing);
  }

  /** Answers every sample's prompt and cleans the answers. */
  public Run run(String task, List<Sample> samples) {
    var answers = new Answer[samples.size()];
    long promptTokens = 0;
    long newTokens = 0;
    int answered = 0;
    long start = System.nanoTime();
    try (var progress = new Progress(task, samples.size(), " samples")) {
      int window = (int) Math.min(Integer.MAX_VALUE, (long) batchSize * BATCHES_IN_WINDOW);
      for (long from = 0; from < samples.size(); from += window) {
        var prompts = new ArrayList<Prompt>();
        for (int i = (int) from; i < Math.min(samples.size(), from + window); i++) {
          var ids = codec.encode(samples.get(i).prompt());
          if (ids.length == 0) {
            throw new UserException(task + ": the prompt of sample " + i + " (from 0) is empty");
          }
          if (ids.length > config.maxLength()) {
            answers[i] = skipped(task, i, samples.get(i), ids.length);
            progress.step(1);
          } else {
            prompts.add(new Prompt(i, ids));
          }
        }
        // the longest first: what does not fit into memory is found out at once
        prompts.sort(Comparator.comparingInt((Prompt prompt) -> -prompt.ids.length));
        for (int at = 0; at < prompts.size(); at += batchSize) {
          var batch = prompts.subList(at, Math.min(prompts.size(), at + batchSize));
          var continuations = generate(batch);
          for (int row = 0; row < batch.size(); row++) {
            var prompt = batch.get(row);
            var continuation = continuations.get(row);
            answers[prompt.index] = answer(task, prompt, samples.get(prompt.index), continuation);
            promptTokens += prompt.ids.length;
            newTokens += continuation.length;
          }
          answered += batch.size();
          progress.step(batch.size());
          double seconds = (System.nanoTime() - start) / 1e9;
          progress.note(Math.round(newTokens / seconds) + " tokens/s");
        }
      }
    }
    double seconds = (System.nanoTime() - start) / 1e9;
    return new Run(List.of(answers), new Throughput(seconds, answered, promptTokens, newTokens));
  }

  private List<int[]> generate(List<Prompt> batch) {
    var ids = batch.stream().map(Prompt::ids).toList();
    // every batch draws from a stream of its own
    var settings = config.withSeed(config.seed() + 1_000_003L * batch.getFirst().index);
    if (observer.isEmpty()) {
      return generator.generate(ids, settings);
    }
    var indices = batch.stream().map(Prompt::index).toList();
    routing.accept(observer.get().before(indices, ids));
    List<int[]> result;
    try {
      result = generator.generate(ids, settings);
    } finally {
      routing.accept(null);
    }
    observer.get().after(indices, ids, result);
    return result;
  }

  private Answer answer(String task, Prompt prompt, Sample sample, int[] continuation) {
    var all = Arrays.copyOf(prompt.ids, prompt.ids.length + continuation.length);
    System.arraycopy(continuation, 0, all, prompt.ids.length, continuation.length);
    var decoded = codec.decode(all);
    var cleaned = AnswerCleaner.clean(task, decoded, sample.prompt());
    return new Answer(
        task,
        prompt.index,
        sample.prompt(),
        sample.response(),
        decoded,
        cleaned.text(),
        prompt.ids.length,
        continuation.length,
        false,
        cleaned.promptLost());
  }

  private static Answer skipped(String task, int index, Sample sample, int tokens) {
    return new Answer(
        task, index, sample.prompt(), sample.response(), "", "", tokens, 0, true, false);
  }
}
