package org.meteora.generate;

import static org.assertj.core.api.Assertions.assertThat;

import ai.djl.Device;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import org.junit.jupiter.api.Test;
import org.meteora.UserException;
import org.meteora.backend.Backends;
import org.meteora.model.Llama;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardMode;
import org.meteora.moe.RoutingSettings;
import org.meteora.tensor.Devices;

/**
 * Answers do not depend on who else is answered, nor on the order, nor on what was there before.
 */
class BatchingTest {
  private static final GenerationConfig GREEDY = GenerationConfig.greedy(List.of(7, 9), 90);

  /** Prompts of which a third begins alike, with settings of their own. */
  static List<Request> requests(long seed, int count) {
    var random = new Random(seed);
    var header = random.ints(70, 10, 70).toArray();
    var requests = new ArrayList<Request>();
    for (int i = 0; i < count; i++) {
      int[] own = random.ints(1 + random.nextInt(30), 10, 70).toArray();
      int[] prompt = own;
      if (i % 3 == 0) {
        prompt = Arrays.copyOf(header, header.length + Math.min(own.length, 12));
        System.arraycopy(own, 0, prompt, header.length, Math.min(own.length, 12));
      }
      var config = GREEDY.withMaxNewTokens(1 + random.nextInt(25));
      if (i % 4 == 1) {
        config = config.withNoRepeatNgramSize(2);
      }
      if (i % 5 == 2) {
        config = config.withSampling(0.7 + random.nextDouble(), 0.9, 20, i);
      }
      requests.add(new Request(prompt, config, i));
    }
    return requests;
  }

  static Map<Integer, String> answers(
      Llama llama, DecodeSession.Provider decoding, List<Request> requests, int atOnce) {
    var context = ForwardContext.inference(new RoutingSettings(2, 1), Flags.of(ForwardMode.AUTO));
    var answers = new TreeMap<Integer, String>();
    new Generator(llama, decoding, context)
        .generate(
            requests,
            atOnce,
            new AnswerListener() {
              @Override
              public void onAnswer(int request, int[] tokens) {
                assertThat(answers.put(request, Arrays.toString(tokens))).isNull();
              }

              @Override
              public void onFailure(int request, UserException reason) {
                assertThat(answers.put(request, reason.getMessage())).isNull();
              }

              @Override
              public void onStep(Load load) {
                assertThat(load.running()).isLessThanOrEqualTo(atOnce);
              }
            });
    return answers;
  }

  @Test
  void everyBatchSizeAndOrderGivesTheSameAnswers() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = RequestsTest.model(manager);
      var decoding = Backends.decoding(llama);
      var requests = requests(1, 30);
      var expected = new TreeMap<Integer, String>();
      for (int i = 0; i < requests.size(); i++) {
        expected.put(i, answers(llama, decoding, List.of(requests.get(i)), 1).get(0));
      }
      assertThat(expected.values()).anyMatch(text -> text.length() > 60);
      for (int atOnce : new int[] {1, 2, 3, 8, 16, 40}) {
        assertThat(answers(llama, decoding, requests, atOnce))
            .as("%d at once", atOnce)
            .isEqualTo(expected);
      }
      var order = new ArrayList<>(expected.keySet());
      java.util.Collections.shuffle(order, new Random(2));
      var shuffled = answers(llama, decoding, order.stream().map(requests::get).toList(), 5);
      for (int i = 0; i < order.size(); i++) {
        assertThat(shuffled.get(i)).isEqualTo(expected.get(order.get(i)));
      }
    }
  }

  @Test
  void oneThatFailsEndsAlone() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = RequestsTest.model(manager);
      var decoding = Backends.decoding(llama);
      var requests = new ArrayList<>(requests(3, 8));
      var whole = answers(llama, decoding, requests, 4);
      requests.set(2, new Request(new int[0], GREEDY, 0));
      requests.set(5, new Request(new int[200], GREEDY, 0));
      var some = answers(llama, decoding, requests, 4);
      assertThat(some.get(2)).contains("without a single token");
      assertThat(some.get(5)).contains("200 tokens, more than the 90");
      whole.keySet().removeAll(List.of(2, 5));
      some.keySet().removeAll(List.of(2, 5));
      assertThat(some).isEqualTo(whole);
    }
  }

  /** What a beginning that is shared spares, and only where there is one. */
  @Test
  void sharedBeginningsAreComputedOnce() {
    var header = new Random(5).ints(70, 10, 70).toArray();
    var prompts = new ArrayList<int[]>();
    for (int i = 0; i < 6; i++) {
      var prompt = Arrays.copyOf(header, 75);
      Arrays.fill(prompt, 70, 75, 20 + i);
      prompts.add(prompt);
    }
    prompts.add(new int[] {1, 2, 3});
    assertThat(PrefixCache.shared(prompts)).containsExactly(64, 64, 64, 64, 64, 64, 0);
    prompts.add(prompts.getFirst().clone()); // the same once more: all but the last step
    assertThat(PrefixCache.shared(prompts)[0]).isEqualTo(64);
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = RequestsTest.model(manager);
      var spared = new long[1];
      var context = ForwardContext.inference(new RoutingSettings(2, 1), Flags.of(ForwardMode.AUTO));
      new Generator(llama, Backends.decoding(llama), context)
          .generate(
              prompts.stream().map(p -> new Request(p, GREEDY.withMaxNewTokens(4), 0)).toList(),
              3,
              new AnswerListener() {
                @Override
                public void onAnswer(int request, int[] tokens) {}

                @Override
                public void onFailure(int request, UserException reason) {
                  throw reason;
                }

                @Override
                public void onStep(Load load) {
                  spared[0] = load.prefixTokens();
                }
              });
      assertThat(spared[0]).isEqualTo(6 * 64);
    }
  }
}
