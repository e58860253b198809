package org.meteora.eval;

import static java.util.stream.Collectors.toList;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.reflect.Proxy;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.Phaser;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.Consumer;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.meteora.UserException;
import org.meteora.data.Sample;
import org.meteora.generate.AnswerListener;
import org.meteora.generate.GenerationConfig;
import org.meteora.generate.Request;
import org.meteora.generate.TokenGenerator;
import org.meteora.moe.RoutingListener;
import org.meteora.parallel.Collective;
import org.meteora.parallel.Messages;

/** The runner with a model that repeats the number it was asked about. */
class EvaluatorTest {
  /** A character is a token. */
  private static final TextCodec CHARACTERS =
      new TextCodec() {
        @Override
        public int[] encode(String prompt) {
          return prompt.chars().toArray();
        }

        @Override
        public String decode(int[] ids) {
          return new String(ids, 0, ids.length);
        }
      };

  private static final GenerationConfig CONFIG = GenerationConfig.greedy(List.of(0), 60);

  private static class Echo implements TokenGenerator {
    final List<List<Integer>> lengths = new ArrayList<>();
    final List<Long> streams = new ArrayList<>();
    final List<RoutingListener> listeners = new ArrayList<>();
    String fails = "";

    @Override
    public void generate(List<Request> requests, int atOnce, AnswerListener listener) {
      lengths.add(requests.stream().map(request -> request.prompt().length).toList());
      for (int i = requests.size() - 1; i >= 0; i--) { // in any order
        streams.add(requests.get(i).stream());
        requests.get(i).listener().ifPresent(listeners::add);
        var prompt = CHARACTERS.decode(requests.get(i).prompt());
        if (!fails.isEmpty() && prompt.contains(fails)) {
          listener.onFailure(i, new UserException("a token without a row"));
        } else {
          listener.onAnswer(i, CHARACTERS.encode(prompt.replaceAll("\\D", "")));
        }
      }
    }
  }

  private static Sample sample(int number, int padding) {
    return new Sample("[INST] " + "x".repeat(padding) + number + " [/INST]\n", "" + number);
  }

  @Test
  void answersComeInTheDatasOrderFromPromptsLongestFirst() {
    var random = new Random(5);
    var samples = IntStream.range(0, 150).mapToObj(i -> sample(i, random.nextInt(30))).toList();
    var echo = new Echo();
    var run = new Evaluator(echo, CHARACTERS, CONFIG, 4).run("object_counting", samples);
    for (int i = 0; i < samples.size(); i++) {
      assertThat(run.answers().get(i).index()).isEqualTo(i);
      assertThat(run.answers().get(i).answer()).isEqualTo("" + i);
      assertThat(run.answers().get(i).promptLost()).isFalse();
    }
    assertThat(echo.lengths).hasSize(1);
    assertThat(echo.lengths.getFirst()).isSortedAccordingTo(Comparator.reverseOrder());
    assertThat(run.throughput().samples()).isEqualTo(150);
    assertThat(run.throughput().newTokens()).isEqualTo(10 + 90 * 2 + 50 * 3);
    var scores = Scores.of(EvalTask.of("object_counting"), run.answers());
    assertThat(scores.metrics()).containsEntry("Accuracy", 1.0);
    assertThat(scores.samples()).isEqualTo(150);
  }

  @Test
  void promptsThatAreTooLongAreSkippedAndCounted() {
    var samples = List.of(sample(1, 3), sample(2, 100), sample(3, 3));
    var run = new Evaluator(new Echo(), CHARACTERS, CONFIG, 8).run("object_counting", samples);
    assertThat(run.answers()).extracting(Answer::skipped).containsExactly(false, true, false);
    var scores = Scores.of(EvalTask.of("object_counting"), run.answers());
    assertThat(scores.skipped()).isEqualTo(1);
    assertThat(scores.samples()).isEqualTo(2);
    assertThat(scores.metrics()).containsEntry("Accuracy", 1.0);
  }

  @Test
  void allSkippedScoresNull() {
    var run =
        new Evaluator(new Echo(), CHARACTERS, CONFIG, 1)
            .run("object_counting", List.of(sample(2, 100)));
    assertThat(Scores.of(EvalTask.of("object_counting"), run.answers()).metrics())
        .containsEntry("Accuracy", null);
  }

  @Test
  void samplesDrawFromDifferentStreams() {
    var echo = new Echo();
    new Evaluator(echo, CHARACTERS, CONFIG, 1)
        .run("object_counting", List.of(sample(1, 3), sample(2, 3)));
    assertThat(echo.streams).doesNotHaveDuplicates().hasSize(2);
  }

  @Test
  void everySampleHasAListenerOfItsOwn() {
    var heard = new TreeMap<Integer, RoutingListener>();
    var echo = new Echo();
    new Evaluator(echo, CHARACTERS, CONFIG, 2)
        .listenedBy(
            prompt -> {
              RoutingListener listener = (layer, module, rows, tokens, k, indices, weights) -> {};
              heard.put(prompt.length, listener);
              return listener;
            })
        .run("object_counting", List.of(sample(1, 9), sample(2, 0), sample(3, 5), sample(4, 60)));
    assertThat(heard).hasSize(3); // one is skipped
    assertThat(echo.listeners).containsExactlyElementsOf(heard.values());
  }

  @Test
  void mistakesAreNamed() {
    assertThatThrownBy(() -> new Evaluator(new Echo(), CHARACTERS, CONFIG, 0))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("batch size");
    assertThatThrownBy(() -> EvalTask.of("composit_10"))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("composite_10");
    assertThatThrownBy(() -> EvalTask.of("alpacca")).hasMessageContaining("\"alpaca\"");
    assertThatThrownBy(() -> EvalTask.composite("../x", List.of("alpaca"), Path.of("no")))
        .isInstanceOf(UserException.class);
    assertThatThrownBy(() -> EvalTask.composite("x", List.of("nope"), Path.of("no")))
        .isInstanceOf(UserException.class);
    assertThatThrownBy(() -> EvalTask.saved("x", List.of("alpaca", "alpaca"), Map.of()))
        .hasMessageContaining("once");
    assertThatThrownBy(
            () -> EvalTask.saved("x", List.of("a", "b"), Map.of()).requireParts(List.of("one")))
        .hasMessageContaining("1 parts");
  }

  @Test
  void routingTemperatureDependsOnTheTask() {
    assertThat(EvalTask.of("alpaca").routingTemperature()).isEqualTo(1);
    assertThat(EvalTask.of("composite_3").routingTemperature()).isEqualTo(15);
    assertThat(EvalTask.of("composite_5").routingTemperature()).isEqualTo(20);
    assertThat(EvalTask.of("composite_10").routingTemperature()).isEqualTo(30);
  }

  /** A model that cannot take some prompts, alone or in a batch. */
  @Test
  void samplesThatCannotBeAnsweredAreSkippedAndNamed() {
    var samples = IntStream.range(0, 9).mapToObj(i -> sample(i, i)).collect(toList());
    samples.set(3, new Sample("", "3"));
    var echo = new Echo();
    echo.fails = "x5 ";
    var run = new Evaluator(echo, CHARACTERS, CONFIG, 4).run("object_counting", samples);
    assertThat(run.problems())
        .containsExactly(
            java.util.Map.entry(3, "the prompt is empty"),
            java.util.Map.entry(5, "a token without a row"));
    for (int i = 0; i < samples.size(); i++) {
      assertThat(run.answers().get(i).skipped()).isEqualTo(i == 3 || i == 5);
      assertThat(run.answers().get(i).answer()).isEqualTo(i == 3 || i == 5 ? "" : "" + i);
    }
  }

  @Test
  void answersThatDifferFromThoseGivenAloneAreCounted() {
    var samples = IntStream.range(0, 6).mapToObj(i -> sample(i, i)).toList();
    var run = new Evaluator(new Echo(), CHARACTERS, CONFIG, 4).run("object_counting", samples);
    var some = samples.subList(0, 4);
    var alone = new Evaluator(new Echo(), CHARACTERS, CONFIG, 1).run("object_counting", some);
    assertThat(run.comparedWith(alone).batching()).contains(new Evaluator.Batching(4, 0));
    var echo = new Echo();
    echo.fails = "x2 ";
    var other = new Evaluator(echo, CHARACTERS, CONFIG, 1).run("object_counting", some);
    assertThat(run.comparedWith(other).batching()).contains(new Evaluator.Batching(4, 1));
  }

  /** Whatever was answered before, what comes out is the same. */
  @Test
  void whatIsThereIsNotGeneratedAgain() {
    var random = new Random(6);
    var samples = IntStream.range(0, 70).mapToObj(i -> sample(i, random.nextInt(30))).toList();
    var parts = new ArrayList<List<Answer>>();
    var whole =
        new Evaluator(new Echo(), CHARACTERS, CONFIG, 4)
            .run("object_counting", samples, List.of(), parts::add);
    assertThat(parts.stream().flatMap(List::stream).toList())
        .containsExactlyInAnyOrderElementsOf(whole.answers());
    for (int kept : new int[] {0, 1, 33, 69}) {
      var there = parts.subList(0, kept).stream().flatMap(List::stream).collect(toList());
      var echo = new Echo();
      var fresh = new ArrayList<Answer>();
      var run =
          new Evaluator(echo, CHARACTERS, CONFIG, 4)
              .run("object_counting", samples, there, fresh::addAll);
      assertThat(run.answers()).isEqualTo(whole.answers());
      assertThat(fresh).hasSize(70 - there.size()).noneMatch(there::contains);
      assertThat(run.throughput().samples()).isEqualTo(70 - there.size());
      assertThat(echo.lengths.stream().flatMap(List::stream)).hasSize(70 - there.size());
    }
  }

  /** Whoever takes the steps goes on while answers are kept, and comes back when all are. */
  @Test
  void answersAreKeptInOrderWhileOthersAreMade() {
    var samples = IntStream.range(0, 50).mapToObj(i -> sample(i, i % 20)).toList();
    for (boolean breaks : new boolean[] {false, true}) {
      var made = new CountDownLatch(1);
      var echo =
          new Echo() {
            @Override
            public void generate(List<Request> requests, int atOnce, AnswerListener listener) {
              super.generate(requests, atOnce, listener);
              made.countDown();
              if (breaks) {
                throw new UserException("the last step failed");
              }
            }
          };
      var kept = new ArrayList<Long>();
      Consumer<List<Answer>> sink =
          answers -> {
            if (!answers.isEmpty()) { // else it is to see to those before
              assertThat(await(made)).isTrue();
              answers.forEach(answer -> kept.add((long) answer.index()));
            }
          };
      var evaluator = new Evaluator(echo, CHARACTERS, CONFIG, 4);
      if (breaks) {
        assertThatThrownBy(() -> evaluator.run("object_counting", samples, List.of(), sink))
            .hasMessage("the last step failed");
      } else {
        assertThat(evaluator.run("object_counting", samples, List.of(), sink).answers())
            .hasSize(50)
            .doesNotContainNull();
      }
      assertThat(kept).isEqualTo(echo.streams);
    }
  }

  private static boolean await(CountDownLatch latch) {
    try {
      return latch.await(60, TimeUnit.SECONDS);
    } catch (InterruptedException e) {
      throw new IllegalStateException(e);
    }
  }

  /** Before the next step, or at the end; nothing is kept after it. */
  @Test
  void whatCannotBeKeptEndsTheWork() {
    var samples = IntStream.range(0, 9).mapToObj(i -> sample(i, 9 - i)).toList();
    var full = new UserException("no space left");
    for (boolean steps : new boolean[] {false, true}) {
      TokenGenerator generator =
          (requests, atOnce, listener) -> {
            for (int i = 0; i < 9; i++) {
              try {
                listener.onAnswer(i, new int[] {'1'});
              } catch (UserException e) {
                assertThat(e).isSameAs(full);
              }
            }
            long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(60);
            while (steps && System.nanoTime() < end) {
              listener.onStep(new AnswerListener.Load(1, 1, 1, 0));
            }
            assertThat(steps).isFalse();
          };
      var kept = new ArrayList<Answer>();
      Consumer<List<Answer>> sink =
          answers -> {
            assertThat(kept.size()).isLessThan(4);
            kept.addAll(answers);
            if (kept.size() == 4) {
              throw full;
            }
          };
      var evaluator = new Evaluator(generator, CHARACTERS, CONFIG, 4);
      assertThatThrownBy(() -> evaluator.run("object_counting", samples, List.of(), sink))
          .isSameAs(full);
      assertThat(kept).extracting(Answer::index).containsExactly(0, 1, 2, 3);
    }
  }

  /** The first process's side of several that are threads. */
  private static final class Desk {
    final int size;
    final AtomicLong next = new AtomicLong();
    final BlockingQueue<byte[]> messages = new LinkedBlockingQueue<>();
    final List<BlockingQueue<byte[]>> sent = new ArrayList<>();

    Desk(int size) {
      this.size = size;
      IntStream.range(0, 2 * size).forEach(i -> sent.add(new LinkedBlockingQueue<>()));
    }

    Collective of(int rank) {
      return (Collective)
          Proxy.newProxyInstance(
              Collective.class.getClassLoader(),
              new Class<?>[] {Collective.class, Messages.class},
              (proxy, method, arguments) ->
                  switch (method.getName()) {
                    case "rank" -> rank;
                    case "size" -> size;
                    case "messages" -> proxy;
                    case "restartNumbers" -> {
                      if (rank == 0) {
                        next.set(0);
                      }
                      yield null;
                    }
                    case "nextNumber" -> next.getAndIncrement();
                    case "numbersGiven" -> next.get();
                    case "send" -> {
                      messages.add((byte[]) arguments[0]);
                      yield null;
                    }
                    case "received" -> {
                      var all = new ArrayList<byte[]>();
                      messages.drainTo(all);
                      yield all;
                    }
                    case "gather" -> gather(rank, (byte[]) arguments[0]);
                    case "broadcast" -> broadcast(rank, (byte[]) arguments[0]);
                    default -> throw new UnsupportedOperationException(method.getName());
                  });
    }

    private List<byte[]> gather(int rank, byte[] mine) throws InterruptedException {
      var all = new ArrayList<byte[]>();
      if (rank > 0) {
        sent.get(rank).add(mine);
      } else {
        all.add(mine);
        for (int i = 1; i < size; i++) {
          all.add(sent.get(i).take());
        }
      }
      return all;
    }

    private byte[] broadcast(int rank, byte[] ofFirst) throws InterruptedException {
      if (rank > 0) {
        return sent.get(size + rank).take();
      }
      for (int i = 1; i < size; i++) {
        sent.get(size + i).add(ofFirst);
      }
      return ofFirst;
    }
  }

  /**
   * Runs as many at once as it may, a step a token, as the real one does; those that need more
   * steps than others are drawn at random by their numbers.
   */
  private static final class Slots extends Echo {
    final int room;
    final Phaser together;
    boolean begins = true;
    long steps;

    /**
     * @param together all make a step at the same time
     */
    Slots(int room, Phaser together) {
      this.room = room;
      this.together = together;
      together.register();
    }

    static int tokens(Request request) {
      return 1 + new Random(31 * request.stream()).nextInt(40);
    }

    @Override
    public void generate(List<Request> requests, int atOnce, AnswerListener listener) {
      if (!begins) {
        var reason = new UserException("too little memory");
        IntStream.range(0, requests.size()).forEach(i -> listener.onFailure(i, reason));
        return;
      }
      var left = new TreeMap<Integer, Integer>();
      int at = 0;
      while (at < requests.size() || !left.isEmpty()) {
        while (left.size() < Math.min(room, atOnce) && at < requests.size()) {
          if (listener.wants(at)) {
            left.put(at, tokens(requests.get(at)));
          }
          at++;
        }
        steps++;
        together.arriveAndAwaitAdvance();
        for (int each : List.copyOf(left.keySet())) {
          if (left.merge(each, -1, Integer::sum) == 0) {
            left.remove(each);
            var prompt = CHARACTERS.decode(requests.get(each).prompt());
            if (!fails.isEmpty() && prompt.contains(fails)) {
              listener.onFailure(each, new UserException("a token without a row"));
            } else {
              listener.onAnswer(each, CHARACTERS.encode(prompt.replaceAll("\\D", "")));
            }
          }
        }
      }
      together.arriveAndDeregister();
    }
  }

  private static List<Evaluator.Run> dealt(
      List<Slots> generators, List<Sample> samples, List<Answer> there, List<Answer> sink)
      throws Exception {
    var desk = new Desk(generators.size());
    try (var threads = Executors.newCachedThreadPool()) {
      var runs = new ArrayList<Future<Evaluator.Run>>();
      for (int i = 0; i < generators.size(); i++) {
        int rank = i;
        runs.add(
            threads.submit(
                () ->
                    new Evaluator(generators.get(rank), CHARACTERS, CONFIG, 8)
                        .dealtTo(desk.of(rank))
                        .run(
                            "object_counting",
                            samples,
                            rank == 0 ? there : List.of(),
                            sink::addAll)));
      }
      var result = new ArrayList<Evaluator.Run>();
      for (var run : runs) {
        result.add(run.get(60, TimeUnit.SECONDS));
      }
      return result;
    }
  }

  /** Those with room take the next: all end within the length of an answer, in the data's order. */
  @Test
  void severalEndTogetherWhateverTheirAnswersNeed() throws Exception {
    var random = new Random(8);
    var samples = IntStream.range(0, 300).mapToObj(i -> sample(i, 1 + random.nextInt(30))).toList();
    var phaser = new Phaser();
    var generators = IntStream.of(8, 8, 2, 8).mapToObj(room -> new Slots(room, phaser)).toList();
    generators.forEach(each -> each.fails = "x77 ");
    var sink = new ArrayList<Answer>();
    var runs = dealt(generators, samples, List.of(), sink);
    var run = runs.getFirst();
    for (int i = 0; i < samples.size(); i++) {
      assertThat(run.answers().get(i).index()).isEqualTo(i);
      assertThat(run.answers().get(i).answer()).isEqualTo(i == 77 ? "" : "" + i);
    }
    assertThat(run.problems()).containsExactly(Map.entry(77, "a token without a row"));
    assertThat(run.throughput().samples()).isEqualTo(299);
    assertThat(sink).hasSize(299).doesNotHaveDuplicates();
    assertThat(runs.stream().skip(1)).allSatisfy(other -> assertThat(other.answers()).isEmpty());
    // one of them has a quarter of the others' room, and 40 steps are the longest answer
    var steps = generators.stream().mapToLong(each -> each.steps).summaryStatistics();
    assertThat(steps.getMin()).isGreaterThan(200);
    assertThat(steps.getMax() - steps.getMin()).isLessThanOrEqualTo(40);
  }

  /** What another process has taken does not wait, though it is in this one's list. */
  @Test
  void whatOthersHaveTakenDoesNotWait() {
    var desk = new Desk(2);
    var first = new Dealing(desk.of(0), 7);
    var second = new Dealing(desk.of(1), 7);
    assertThat(first.takes(0)).isTrue();
    assertThat(first.takenByOthers()).isZero();
    assertThat(second.takes(0)).isFalse(); // but the second prompt
    assertThat(second.takes(2)).isTrue();
    assertThat(first.takenByOthers()).isEqualTo(2);
    assertThat(first.takes(1)).isFalse(); // but the fourth
    assertThat(first.takenByOthers()).isZero();
    for (int i = 3; i < 9; i++) { // one that asks beyond the end
      second.takes(i);
    }
    assertThat(first.takenByOthers()).isEqualTo(3);
  }

  @Test
  void severalGoOnWithWhatIsThere() throws Exception {
    var samples = IntStream.range(0, 50).mapToObj(i -> sample(i, i % 20)).toList();
    var whole = new Evaluator(new Echo(), CHARACTERS, CONFIG, 4).run("object_counting", samples);
    var there = whole.answers().subList(10, 40);
    var sink = new ArrayList<Answer>();
    var run = dealt(two(), samples, there, sink).getFirst();
    assertThat(run.answers()).isEqualTo(whole.answers());
    assertThat(sink).hasSize(20).doesNotContainAnyElementsOf(there);
    // nothing left
    assertThat(dealt(two(), samples, whole.answers(), sink).getFirst().answers())
        .isEqualTo(whole.answers());
  }

  /**
   * One that has no memory to begin with fails all; the others answer them, whoever that one is.
   */
  @Test
  void othersAnswerWhatOneCannotBegin() throws Exception {
    var samples = IntStream.range(0, 40).mapToObj(i -> sample(i, i % 7)).toList();
    for (int which = 0; which < 3; which++) {
      var phaser = new Phaser();
      var generators = IntStream.range(0, 3).mapToObj(i -> new Slots(4, phaser)).toList();
      generators.get(which).begins = false;
      phaser.arriveAndDeregister();
      var sink = new ArrayList<Answer>();
      var run = dealt(generators, samples, List.of(), sink).getFirst();
      for (int i = 0; i < samples.size(); i++) {
        assertThat(run.answers().get(i).answer()).isEqualTo("" + i);
      }
      assertThat(run.problems()).isEmpty();
      assertThat(sink).hasSize(samples.size()).doesNotHaveDuplicates();
    }
    // where none can begin, each has its problem once
    var none = two();
    none.forEach(each -> each.begins = false);
    var run = dealt(none, samples, List.of(), new ArrayList<>()).getFirst();
    assertThat(run.problems()).hasSize(samples.size());
    assertThat(run.answers()).hasSize(samples.size()).allMatch(Answer::skipped);
  }

  private static List<Slots> two() {
    var phaser = new Phaser();
    return List.of(new Slots(8, phaser), new Slots(8, phaser));
  }
}
