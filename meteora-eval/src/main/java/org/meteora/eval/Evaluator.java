package org.meteora.eval;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.ConcurrentSkipListMap;
import java.util.function.Consumer;
import java.util.function.Function;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.meteora.UserException;
import org.meteora.data.Sample;
import org.meteora.eval.clean.AnswerCleaner;
import org.meteora.eval.clean.AnswerCleaner.Cleaned;
import org.meteora.generate.AnswerListener;
import org.meteora.generate.GenerationConfig;
import org.meteora.generate.Request;
import org.meteora.generate.TokenGenerator;
import org.meteora.io.Jsonl;
import org.meteora.io.Progress;
import org.meteora.moe.RoutingListener;
import org.meteora.parallel.Collective;
import org.meteora.parallel.Exchange;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Has a model answer a task's prompts, the longest first, so that little is padded; the answers
 * come back in the data's order. What one sample is answered does not depend on the others, but for
 * rounding: each draws from a random stream of its own.
 *
 * <p>Long, because batches, streams of sequences and processes share one way to count and to hand
 * over answers.
 *
 * @param config its {@code maxLength} is the limit of prompt and answer together; longer prompts
 *     are skipped
 * @param batchSize sequences at once at most, at least 1
 * @param listeners for a prompt's token ids, who is told the routing of them and of the answer
 * @param collective the processes that have the same samples
 */
public record Evaluator(
    TokenGenerator generator,
    TextCodec codec,
    GenerationConfig config,
    int batchSize,
    Optional<Function<int[], RoutingListener>> listeners,
    Exchange collective) {
  private static final Logger LOG = LoggerFactory.getLogger(Evaluator.class);

  /**
   * What came of an evaluation.
   *
   * @param answers in the order of the samples, skipped ones among them
   * @param throughput how fast they came; answers that were there before are not counted
   * @param problems of samples that could not be answered, by their position; too long is none
   * @param batching how many answers of a sample differ when each is answered alone, if it was
   *     asked
   */
  public record Run(
      List<Answer> answers,
      Throughput throughput,
      Map<Integer, String> problems,
      Optional<Batching> batching) {
    public Run(List<Answer> answers, Throughput throughput, Map<Integer, String> problems) {
      this(answers, throughput, problems, Optional.empty());
    }

    /** The same, with its first answers compared with those of an evaluation one by one. */
    public Run comparedWith(Run alone) {
      var different =
          alone.answers.stream()
              .filter(each -> !each.decoded().equals(answers.get(each.index()).decoded()));
      var batching = new Batching(alone.answers.size(), (int) different.count());
      return new Run(answers, throughput, problems, Optional.of(batching));
    }
  }

  /**
   * What sums in another order do to answers.
   *
   * @param checked answers that were also given alone
   * @param different those of them that came out otherwise
   */
  public record Batching(int checked, int different) {}

  private record Prompt(int index, Sample sample, int[] ids) {}

  /**
   * What another process tells the first one.
   *
   * @param answered in all, in its last word
   * @param seconds that it has worked, in its last word
   */
  private record Found(
      List<Answer> answers, Map<Integer, String> problems, int answered, double seconds) {}

  public Evaluator {
    if (batchSize < 1) {
      throw new UserException("the batch size must be at least 1, not " + batchSize);
    }
  }

  /** One in a single process, to which nobody listens. */
  public Evaluator(
      TokenGenerator generator, TextCodec codec, GenerationConfig config, int batchSize) {
    this(generator, codec, config, batchSize, Optional.empty(), Collective.single());
  }

  /** The same evaluator, with {@link #listeners}. */
  public Evaluator listenedBy(Function<int[], RoutingListener> listeners) {
    return new Evaluator(generator, codec, config, batchSize, Optional.of(listeners), collective);
  }

  /**
   * The same evaluator, one of several processes with the same samples: who has room takes the next
   * one, and the first process gets all answers. What {@link #run} returns at the others holds
   * nothing.
   */
  public Evaluator dealtTo(Exchange processes) {
    return new Evaluator(generator, codec, config, batchSize, listeners, processes);
  }

  /** Answers every sample's prompt and cleans the answers. */
  public Run run(String task, List<Sample> samples) {
    return run(task, samples, List.of(), answers -> {});
  }

  /**
   * Answers the prompts of those samples that are not answered yet. What comes of one does not
   * depend on the others, so that an evaluation gone on with gives what it would have given in one
   * go.
   *
   * @param there answers of an earlier run; of several processes the first one's count
   * @param sink is given answers as they come, in the first process and by a thread that does
   *     nothing else; ten times a second also none, so that it can see to those before
   */
  public Run run(
      String task, List<Sample> samples, List<Answer> there, Consumer<List<Answer>> sink) {
    var answers = new Answer[samples.size()];
    collective.messages().restartNumbers();
    read(collective.broadcast(bytes(new Found(there, Map.of(), 0, 0)))).answers().stream()
        .filter(answer -> !answer.skipped() && answer.index() < answers.length)
        .forEach(answer -> answers[answer.index()] = answer);
    var problems = new ConcurrentSkipListMap<Integer, String>();
    var fresh = new ArrayList<Answer>();
    long start = System.nanoTime();
    try (var progress = new Progress(task, samples.size(), " samples", 1)) {
      // a long prompt takes the tokenizer milliseconds
      var encoded =
          IntStream.range(0, answers.length)
              .parallel()
              .filter(i -> answers[i] == null)
              .mapToObj(i -> encode(samples.get(i), i, problems))
              .collect(Collectors.partitioningBy(this::fits));
      encoded
          .get(false)
          .forEach(prompt -> answers[prompt.index] = answer(task, prompt, Optional.empty()));
      // the longest first: what does not fit into memory is found out at once
      var longest = Comparator.comparingInt((Prompt prompt) -> -prompt.ids.length);
      var prompts = encoded.get(true).stream().sorted(longest).toList();
      progress.step(samples.size() - prompts.size());
      boolean first = collective.rank() == 0;
      Consumer<Found> keep =
          found -> {
            problems.putAll(found.problems());
            found.answers().stream()
                .filter(answer -> answers[answer.index()] == null || !answer.skipped())
                .forEach(answer -> answers[answer.index()] = answer);
            var answered = found.answers().stream().filter(answer -> !answer.skipped()).toList();
            sink.accept(answered);
            fresh.addAll(answered);
            progress.step(found.answers().size());
          };
      Runnable receive =
          () -> {
            collective.messages().received().forEach(other -> keep.accept(read(other)));
            sink.accept(List.of());
          };
      List<Found> last;
      try (var handover = new Handover(first ? receive : () -> {})) {
        int own =
            answer(
                task,
                prompts,
                problems,
                progress,
                handover,
                answer -> {
                  var found = new Found(List.of(answer), Map.of(), 0, 0);
                  if (first) {
                    keep.accept(found);
                  } else {
                    collective.messages().send(bytes(found));
                  }
                });
        double worked = (System.nanoTime() - start) / 1e9;
        handover.check();
        if (!first) { // a process's last word comes after all messages that it has sent
          handover.finish();
        }
        var mine = bytes(new Found(List.of(), problems, own, worked));
        last = collective.gather(mine).stream().map(Evaluator::read).toList();
        handover.finish();
      }
      if (first) {
        receive.run();
        last.forEach(keep);
        // one that could not begin had problems with prompts that others have answered
        problems.keySet().removeIf(index -> !answers[index].skipped());
        logShares(last);
      }
    }
    double seconds = (System.nanoTime() - start) / 1e9;
    return new Run(
        collective.rank() > 0 ? List.of() : List.of(answers),
        new Throughput(
            seconds,
            fresh.size(),
            fresh.stream().mapToLong(Answer::promptTokens).sum(),
            fresh.stream().mapToLong(Answer::newTokens).sum()),
        problems);
  }

  /** How evenly the processes have ended. */
  private static void logShares(List<Found> processes) {
    if (processes.size() > 1) {
      LOG.info(
          "answers of each process, and its seconds: {}",
          processes.stream()
              .map(each -> String.format(Locale.ROOT, "%d %.1f", each.answered, each.seconds))
              .collect(Collectors.joining(", ")));
    }
  }

  private static byte[] bytes(Found found) {
    return Jsonl.JSON.valueToTree(found).toString().getBytes(StandardCharsets.UTF_8);
  }

  private static Found read(byte[] bytes) {
    try {
      return Jsonl.JSON.readValue(bytes, Found.class);
    } catch (IOException e) {
      throw new IllegalStateException(e);
    }
  }

  /** A prompt with its ids; none when it cannot be answered, which is noted. */
  private Prompt encode(Sample sample, int index, Map<Integer, String> problems) {
    var ids = new int[0];
    try {
      ids = codec.encode(sample.prompt());
      if (ids.length == 0) {
        problems.put(index, "the prompt is empty");
      }
    } catch (UserException e) {
      problems.put(index, e.getMessage());
    }
    return new Prompt(index, sample, ids);
  }

  private boolean fits(Prompt prompt) {
    return prompt.ids.length > 0 && prompt.ids.length <= config.maxLength();
  }

  /**
   * Answers prompts, and passes on what comes of each as it comes, by the handover.
   *
   * @return how many were answered
   */
  private int answer(
      String task,
      List<Prompt> prompts,
      Map<Integer, String> problems,
      Progress progress,
      Handover handover,
      Consumer<Answer> sink) {
    // every sample draws from a stream of its own, whoever runs beside it
    var requests = prompts.stream().map(this::request).toList();
    long start = System.nanoTime();
    // where there are few, nobody takes the others'
    int each = (prompts.size() + collective.size() - 1) / collective.size();
    var listener =
        new AnswerListener() {
          private final Dealing dealing = new Dealing(collective, prompts.size());
          private long tokens;
          private int answered;

          @Override
          public boolean wants(int request) {
            return dealing.takes(request);
          }

          @Override
          public void onToken(int request, int token) {
            tokens++;
          }

          @Override
          public void onAnswer(int request, int[] answer) {
            if (dealing.has(request)) {
              answered++;
              handover.add(
                  () -> sink.accept(answer(task, prompts.get(request), Optional.of(answer))));
            }
          }

          @Override
          public void onFailure(int request, UserException reason) {
            if (dealing.has(request)) {
              problems.put(prompts.get(request).index, reason.getMessage());
              handover.add(() -> sink.accept(answer(task, prompts.get(request), Optional.empty())));
            }
          }

          @Override
          public void onStep(Load load) {
            handover.check();
            double speed = tokens / ((System.nanoTime() - start) / 1e9);
            long waiting = load.waiting() - dealing.takenByOthers();
            handover.add(
                () ->
                    progress.note(
                        String.format(
                            Locale.ROOT,
                            "%,.0f tokens/s, %d running, %d waiting, %,d blocks, %,d prefix tokens",
                            speed,
                            load.running(),
                            waiting,
                            load.blocks(),
                            load.prefixTokens())));
          }
        };
    generator.generate(requests, Math.clamp(each, 1, batchSize), listener);
    return listener.answered;
  }

  private Request request(Prompt prompt) {
    var request = new Request(prompt.ids, config, prompt.index);
    return listeners.map(each -> request.listenedBy(each.apply(prompt.ids))).orElse(request);
  }

  /** What came of a prompt: without a continuation it is skipped. */
  private Answer answer(String task, Prompt prompt, Optional<int[]> continuation) {
    var its = IntStream.of(continuation.orElse(new int[0]));
    var ids = IntStream.concat(IntStream.of(prompt.ids), its).toArray();
    var decoded = continuation.isEmpty() ? "" : codec.decode(ids);
    var cleaned =
        continuation.isEmpty()
            ? new Cleaned("", false)
            : AnswerCleaner.clean(task, decoded, prompt.sample.prompt());
    return new Answer(
        task,
        prompt.index,
        prompt.sample.prompt(),
        prompt.sample.response(),
        decoded,
        cleaned.text(),
        prompt.ids.length,
        ids.length - prompt.ids.length,
        continuation.isEmpty(),
        cleaned.promptLost());
  }
}
