package org.meteora.generate;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import ai.djl.Device;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.OptionalInt;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.meteora.TooLittleMemory;
import org.meteora.UserException;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.moe.Choice;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.Router;
import org.meteora.moe.RoutingSettings;
import org.meteora.moe.SequenceRouter;
import org.meteora.router.Routers;
import org.meteora.tensor.Devices;

/** Steps that find too little memory, and listeners that fail. */
class FailingSessionTest {
  private static final List<int[]> PROMPTS =
      List.of(new int[] {3, 17, 5, 60, 2, 9}, new int[] {8, 1}, new int[] {44, 6, 6, 31});
  private static final GenerationConfig CONFIG =
      GenerationConfig.greedy(List.of(), 1000).withMaxNewTokens(6).withSampling(1, 1, 0, 3);
  private static final ForwardContext ASKS =
      ForwardContext.inference(RoutingSettings.DEFAULT, Flags.AUTO);

  /** Its steps have memory for so many sequences of so many tokens, and so many may join. */
  private static DecodeSession.Provider narrow(Llama llama, int sequences, int tokens, int rows) {
    return new DelegatingSession.Provider(ModelSession.of(llama)) {
      @Override
      public DecodeSession begin(int atOnce, int expected, ForwardContext context) {
        return new DelegatingSession(super.begin(atOnce, expected, context)) {
          private int steps;

          @Override
          public void join(KvCache filled, List<KvCache.Columns> columns) {
            if (columns.size() > rows) {
              throw new TooLittleMemory("too little for prompts");
            }
            super.join(filled, columns);
          }

          @Override
          public int[] step(List<Next> next, boolean goesOn) {
            if (next.size() > sequences && steps++ >= tokens) {
              throw new TooLittleMemory("too little");
            }
            return super.step(next, goesOn);
          }
        };
      }
    };
  }

  /**
   * Chooses by a prompt token's place from the end, and by how many tokens of an answer are before.
   */
  private record ByPlace(int prompt, int tokens) implements SequenceRouter {
    @Override
    public SequenceRouter next(int token) {
      return new ByPlace(prompt, tokens + 1);
    }

    @Override
    public Choice choose(int first, int count) {
      var choice = new Choice(count, 1);
      for (int i = 0; i < count; i++) {
        int place = first + i;
        assertThat(place).isLessThan(tokens);
        choice.indices()[i] =
            Math.floorMod(place < prompt ? prompt - 1 - place : place - prompt, 5);
        choice.weights()[i] = 1;
      }
      return choice;
    }
  }

  record ReadsPlaces() implements Router.Reading {
    @Override
    public String name() {
      return "by place";
    }

    @Override
    public SequenceRouter of(int[] prompt) {
      return new ByPlace(prompt.length, prompt.length);
    }
  }

  private static final class Answers implements AnswerListener {
    final List<String> outcomes = new ArrayList<>();

    @Override
    public void onAnswer(int request, int[] tokens) {
      outcomes.add(request + ": " + Arrays.toString(tokens));
    }

    @Override
    public void onFailure(int request, UserException reason) {
      outcomes.add(request + ": " + reason.getMessage());
    }
  }

  private static List<String> answers(
      Llama llama, DecodeSession.Provider decoding, ForwardContext asks, int atOnce) {
    var answers = new Answers();
    var requests =
        IntStream.range(0, PROMPTS.size())
            .mapToObj(i -> new Request(PROMPTS.get(i), CONFIG, i))
            .toList();
    new Generator(llama, decoding, asks).generate(requests, atOnce, answers);
    answers.outcomes.sort(null);
    return answers.outcomes;
  }

  @Test
  void aStepWithTooLittleMemoryPutsBackAndGoesOnWithFewer() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = RequestsTest.model(manager);
      var expected = answers(llama, ModelSession.of(llama), ASKS, 3);
      assertThat(expected).hasSize(3);
      assertThat(answers(llama, narrow(llama, 2, 2, 3), ASKS, 3)).isEqualTo(expected);
      assertThat(answers(llama, narrow(llama, 1, 0, 3), ASKS, 3)).isEqualTo(expected);
      assertThat(answers(llama, narrow(llama, 0, 0, 3), ASKS, 3))
          .containsExactly("0: too little", "1: too little", "2: too little");
    }
  }

  /** As {@link #narrow} of no sequence, where something is otherwise. */
  private static class Narrow extends DelegatingSession.Provider {
    int begun;

    Narrow(Llama llama, int sequences) {
      super(narrow(llama, sequences, 2, 3));
    }

    @Override
    public DecodeSession begin(int atOnce, int expected, ForwardContext context) {
      begun++;
      return super.begin(atOnce, expected, context);
    }
  }

  @Test
  void allFailWhereThereIsNoMemoryForFewerEither() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = RequestsTest.model(manager);
      var decoding =
          new Narrow(llama, 2) {
            @Override
            public DecodeSession begin(int atOnce, int expected, ForwardContext context) {
              if (begun > 0) {
                throw new TooLittleMemory("not one block");
              }
              return super.begin(atOnce, expected, context);
            }
          };
      assertThat(answers(llama, decoding, ASKS, 3))
          .containsExactly("0: not one block", "1: not one block", "2: not one block");
    }
  }

  /** A prompt with its answer is not computed as the answer was: who ran fails, others go on. */
  @Test
  void nothingThatMustBeAloneIsComputedAgain() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = RequestsTest.model(manager);
      var decoding =
          new Narrow(llama, 1) {
            @Override
            public OptionalInt passTokens() {
              return OptionalInt.of(KvCache.BLOCK);
            }
          };
      var expected = answers(llama, ModelSession.of(llama), ASKS, 3);
      assertThat(answers(llama, decoding, ASKS, 2))
          .containsExactly("0: too little", "1: too little", expected.get(2));
      assertThat(decoding.begun).isEqualTo(2);
    }
  }

  @Test
  void sequencesWithARouterEachGoOnWithFewer() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = RequestsTest.model(manager);
      var router = Routers.of("logo", llama, List.of("a", "b", "c", "d", "e"));
      var asks = ASKS.withRouting(RoutingSettings.DEFAULT.withRouter(router));
      var expected = answers(llama, ModelSession.of(llama), asks, 1);
      assertThat(expected).hasSize(3).allMatch(answer -> answer.endsWith("]"));
      assertThat(answers(llama, narrow(llama, 3, 0, 1), asks, 3)).isEqualTo(expected);
      // a step in the midst of their answers: each goes on behind what it has
      assertThat(answers(llama, narrow(llama, 1, 2, 3), asks, 3)).isEqualTo(expected);
      assertThat(answers(llama, narrow(llama, 0, 0, 3), asks, 3))
          .containsExactly("0: too little", "1: too little", "2: too little");
    }
  }

  @Test
  void aRouterThatReadsKnowsAnAnswerThatIsRunAgain() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = RequestsTest.model(manager);
      var asks = ASKS.withRouting(RoutingSettings.DEFAULT.withRouter(new ReadsPlaces()));
      var expected = answers(llama, ModelSession.of(llama), asks, 1);
      for (int steps = 0; steps < 5; steps++) {
        assertThat(answers(llama, narrow(llama, 1, steps, 3), asks, 3)).isEqualTo(expected);
      }
    }
  }

  @Test
  void whatFailsForAnotherReasonThanMemoryFailsAtOnceAndHoldsNobodyUp() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = RequestsTest.model(manager);
      var answers = new Answers();
      var tokens = new int[] {20, 2, 2, 2};
      var adapters = new int[] {0, 0, 9, 0};
      var requests =
          IntStream.range(0, tokens.length)
              .mapToObj(
                  i ->
                      new Request(PROMPTS.get(i % 3), CONFIG.withMaxNewTokens(tokens[i]), i)
                          .withRouting(new RoutingSettings(1, 1, Router.fixed(adapters[i]))))
              .toList();
      new Generator(llama, ModelSession.of(llama), ASKS).generate(requests, 2, answers);
      assertThat(answers.outcomes).hasSize(4);
      assertThat(answers.outcomes.get(1)).startsWith("2: no adapter 9");
      assertThat(answers.outcomes.getLast()).startsWith("0: [");
    }
  }

  @Test
  void aListenerOfAllIsRefused() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = RequestsTest.model(manager);
      var asks =
          ASKS.withListener(
              Optional.of((layer, module, rows, count, topK, indices, weights) -> {}));
      assertThatThrownBy(() -> new Generator(llama, ModelSession.of(llama), asks))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining("Request.listenedBy");
    }
  }

  @Test
  void whatAListenerThrowsEndsAll() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = RequestsTest.model(manager);
      var generator = new Generator(llama, ModelSession.of(llama), ASKS);
      var full = new UserException("the disk is full");
      var told = new int[1];
      assertThatThrownBy(
              () ->
                  generator.generate(
                      PROMPTS.stream().map(prompt -> new Request(prompt, CONFIG, 0)).toList(),
                      (row, token) -> {
                        told[0]++;
                        throw full;
                      }))
          .isSameAs(full);
      assertThat(told[0]).isEqualTo(1);
    }
  }
}
