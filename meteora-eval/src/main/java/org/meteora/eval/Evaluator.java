package org.meteora.eval;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.TreeMap;
import java.util.function.Consumer;
import java.util.function.Function;
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
  private final Function<RoutingListener, TokenGenerator> routing;

  /**
   * What came of an evaluation.
   *
   * @param answers in the order of the samples, skipped ones among them
   * @param throughput how fast they came; answers that were there before are not counted
   * @param problems of samples that could not be answered, by their position; too long is none
   */
  public record Run(List<Answer> answers, Throughput throughput, Map<Integer, String> problems) {
    public Run(List<Answer> answers, Throughput throughput) {
      this(answers, throughput, Map.of());
    }
  }

  private record Prompt(int index, int[] ids) {}

  /**
   * @param config its {@code maxLength} is the limit of prompt and answer together; longer prompts
   *     are skipped
   * @param batchSize prompts at a time, at least 1
   */
  public Evaluator(
      TokenGenerator generator, TextCodec codec, GenerationConfig config, int batchSize) {
    this(generator, codec, config, batchSize, Optional.empty(), listener -> generator);
  }

  private Evaluator(
      TokenGenerator generator,
      TextCodec codec,
      GenerationConfig config,
      int batchSize,
      Optional<BatchObserver> observer,
      Function<RoutingListener, TokenGenerator> routing) {
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
   * @param routing a generator that tells this listener of every routing
   */
  public Evaluator observedBy(
      BatchObserver observer, Function<RoutingListener, TokenGenerator> routing) {
    return new Evaluator(generator, codec, config, batchSize, Optional.of(observer), routing);
  }

  /** Answers every sample's prompt and cleans the answers. */
  public Run run(String task, List<Sample> samples) {
    return run(task, samples, List.of(), answers -> {});
  }

  /**
   * Answers the prompts of those samples that are not answered yet. Batches are the same whatever
   * is there already, so that an evaluation gone on with gives what it would have given in one go.
   *
   * @param there answers of an earlier run
   * @param sink is given answers as they come
   */
  public Run run(
      String task, List<Sample> samples, List<Answer> there, Consumer<List<Answer>> sink) {
    var answers = new Answer[samples.size()];
    there.stream()
        .filter(answer -> !answer.skipped() && answer.index() < answers.length)
        .forEach(answer -> answers[answer.index()] = answer);
    var problems = new TreeMap<Integer, String>();
    long promptTokens = 0;
    long newTokens = 0;
    int answered = 0;
    long start = System.nanoTime();
    try (var progress = new Progress(task, samples.size(), " samples")) {
      int window = (int) Math.min(Integer.MAX_VALUE, (long) batchSize * BATCHES_IN_WINDOW);
      for (long from = 0; from < samples.size(); from += window) {
        var prompts = new ArrayList<Prompt>();
        for (int i = (int) from; i < Math.min(samples.size(), from + window); i++) {
          var ids = encode(samples.get(i).prompt(), i, problems);
          if (ids.length == 0 || ids.length > config.maxLength()) {
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
          if (batch.stream().allMatch(prompt -> answers[prompt.index] != null)) {
            progress.step(batch.size());
            continue;
          }
          var continuations = generate(batch, problems);
          var fresh = new ArrayList<Answer>();
          for (int row = 0; row < batch.size(); row++) {
            var prompt = batch.get(row);
            var sample = samples.get(prompt.index);
            var continuation = continuations.get(row);
            if (continuation == null) {
              answers[prompt.index] = skipped(task, prompt.index, sample, prompt.ids.length);
            } else if (answers[prompt.index] == null) {
              answers[prompt.index] = answer(task, prompt, sample, continuation);
              fresh.add(answers[prompt.index]);
              promptTokens += prompt.ids.length;
              newTokens += continuation.length;
            }
          }
          sink.accept(fresh);
          answered += fresh.size();
          progress.step(batch.size());
          double seconds = (System.nanoTime() - start) / 1e9;
          progress.note(Math.round(newTokens / seconds) + " tokens/s");
        }
      }
    }
    double seconds = (System.nanoTime() - start) / 1e9;
    return new Run(
        List.of(answers), new Throughput(seconds, answered, promptTokens, newTokens), problems);
  }

  /** A prompt's ids; none when it cannot be answered, which is noted. */
  private int[] encode(String prompt, int index, Map<Integer, String> problems) {
    try {
      var ids = codec.encode(prompt);
      if (ids.length == 0) {
        problems.put(index, "the prompt is empty");
      }
      return ids;
    } catch (UserException e) {
      problems.put(index, e.getMessage());
      return new int[0];
    }
  }

  /** Continuations by row; a row that fails alone has none, which is noted. */
  private List<int[]> generate(List<Prompt> batch, Map<Integer, String> problems) {
    try {
      return generate(batch);
    } catch (UserException e) {
      if (batch.size() == 1) {
        problems.put(batch.getFirst().index, e.getMessage());
        return Collections.singletonList(null);
      }
      var result = new ArrayList<int[]>();
      batch.forEach(prompt -> result.addAll(generate(List.of(prompt), problems)));
      return result;
    }
  }

  private List<int[]> generate(List<Prompt> batch) {
    var ids = batch.stream().map(Prompt::ids).toList();
    // every batch draws from a stream of its own
    var settings = config.withSeed(config.seed() + 1_000_003L * batch.getFirst().index);
    if (observer.isEmpty()) {
      return generator.generate(ids, settings);
    }
    var indices = batch.stream().map(Prompt::index).toList();
    var result = routing.apply(observer.get().before(indices, ids)).generate(ids, settings);
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
