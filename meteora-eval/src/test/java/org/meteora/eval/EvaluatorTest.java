package org.meteora.eval;

import static java.util.stream.Collectors.toList;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.meteora.UserException;
import org.meteora.data.Sample;
import org.meteora.generate.AnswerListener;
import org.meteora.generate.GenerationConfig;
import org.meteora.generate.Request;
import org.meteora.generate.TokenGenerator;
import org.meteora.moe.RoutingListener;

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
}
