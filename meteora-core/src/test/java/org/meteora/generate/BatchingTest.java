package org.meteora.generate;

import static org.assertj.core.api.Assertions.assertThat;

import ai.djl.Device;
import java.lang.reflect.Proxy;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.meteora.UserException;
import org.meteora.backend.Backends;
import org.meteora.model.Backend;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.model.MemoryNeed;
import org.meteora.model.RandomLlama;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardMode;
import org.meteora.moe.Router;
import org.meteora.moe.RoutingSettings;
import org.meteora.router.Routers;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;

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
    return answers(new Generator(llama, decoding, context), requests, atOnce);
  }

  /** Tokens of each request's answer, or why it has none. */
  static Map<Integer, String> answers(Generator generator, List<Request> requests, int atOnce) {
    var answers = new TreeMap<Integer, String>();
    generator.generate(
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

  /** The same sessions, whose steps wait for fewer tokens of prompts. */
  static DecodeSession.Provider inPieces(DecodeSession.Provider decoding, int tokens) {
    return new DelegatingSession.Provider(decoding) {
      @Override
      public int prefillTokens() {
        return tokens;
      }
    };
  }

  /** The same sessions, which begin the next step before they return wherever they are told to. */
  private static DecodeSession.Provider ahead(DecodeSession.Provider decoding, int[] begun) {
    return new DelegatingSession.Provider(decoding) {
      @Override
      public DecodeSession begin(int sequences, int tokens, ForwardContext context) {
        return new DelegatingSession(super.begin(sequences, tokens, context)) {
          private List<Next> its = List.of();
          private int[] chosen = {};

          @Override
          public int[] step(List<Next> rows, boolean goesOn) {
            int[] result = isAhead() ? ofBegun(rows) : super.step(rows, false);
            boolean all = its.isEmpty() || its.size() == rows.size();
            its = List.of();
            if (goesOn && all && rows.stream().allMatch(this::hasRoom)) {
              begun[0]++;
              its =
                  IntStream.range(0, result.length)
                      .mapToObj(i -> behind(rows.get(i), result[i]))
                      .toList();
              chosen = super.step(its, false);
            }
            return result;
          }

          private boolean hasRoom(Next next) {
            return next.length() + 1 < next.blocks().length * KvCache.BLOCK;
          }

          private Next behind(Next next, int token) {
            long uniform = next.nextUniform();
            return new Next(
                next.blocks(),
                next.length() + 1,
                token,
                new int[0],
                uniform,
                0,
                next.config(),
                next.router());
          }

          private int newest(Next next) {
            return next.blocks()[next.length() / KvCache.BLOCK];
          }

          /** Of those that are left in the same order. */
          private int[] ofBegun(List<Next> rows) {
            var result = new int[rows.size()];
            int at = 0;
            for (int i = 0; i < result.length; i++) {
              var next = rows.get(i);
              while (its.get(at).length() != next.length() || newest(its.get(at)) != newest(next)) {
                at++;
              }
              assertThat(its.get(at).token()).isEqualTo(next.token());
              assertThat(its.get(at).uniform()).isEqualTo(next.uniform());
              result[i] = chosen[at++];
            }
            return result;
          }

          @Override
          public boolean isAhead() {
            return !its.isEmpty();
          }

          @Override
          public KvCache pool() {
            its = List.of(); // of those that have all ended
            return super.pool();
          }
        };
      }
    };
  }

  @Test
  void aStepMayBeginBeforeItIsAskedFor() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = RequestsTest.model(manager);
      var requests =
          requests(5, 30).stream()
              .filter(request -> request.config().noRepeatNgramSize() == 0)
              .toList();
      var expected = answers(llama, ModelSession.of(llama), requests, 4);
      for (int atOnce : new int[] {1, 4, 12}) {
        var begun = new int[1];
        assertThat(answers(llama, ahead(ModelSession.of(llama), begun), requests, atOnce))
            .as("%d at once", atOnce)
            .isEqualTo(expected);
        assertThat(begun[0]).isGreaterThan(10);
      }
    }
  }

  /** Every kind of router, several k and T; of some the routing is heard. */
  static List<Request> mixed(Llama llama, List<Request> requests, List<String> heard) {
    var names = List.of("a", "b", "c", "d", "e");
    var routings =
        List.of(
            new RoutingSettings(2, 1),
            new RoutingSettings(1, 1),
            new RoutingSettings(3, 5),
            new RoutingSettings(3, 0.2),
            RoutingSettings.DEFAULT.withRouter(Router.fixed(1)),
            RoutingSettings.DEFAULT.withRouter(Router.fixed(4)),
            RoutingSettings.DEFAULT.withRouter(Router.none()),
            RoutingSettings.DEFAULT.withRouter(Router.uniform(5)),
            RoutingSettings.DEFAULT.withRouter(new FailingSessionTest.ReadsPlaces()),
            new RoutingSettings(2, 1, Routers.of("logo", llama, names)),
            new RoutingSettings(3, 1, Routers.of("logo", llama, names)),
            new RoutingSettings(2, 1, Routers.of("arrow", llama, names)));
    var mixed = new ArrayList<Request>();
    for (var each : requests) {
      int which = mixed.size();
      var request = each.withRouting(routings.get(which % routings.size()));
      var gates = new TreeMap<Integer, String>();
      heard.add("");
      mixed.add(
          which % 5 > 1
              ? request
              : request.listenedBy(
                  (layer, module, rows, tokens, k, indices, weights) -> {
                    assertThat(rows * tokens * k).isEqualTo(indices.length);
                    gates.merge(7 * layer + module, text(indices, weights), String::concat);
                    heard.set(which, gates.toString());
                  }));
    }
    return mixed;
  }

  private static String text(int[] indices, float[] weights) {
    var text = new StringBuilder();
    for (int i = 0; i < indices.length; i++) {
      if (weights[i] > 0) {
        text.append(indices[i]).append(':').append(Math.round(100 * weights[i])).append(' ');
      }
    }
    return text.toString();
  }

  @Test
  void eachIsAnsweredByItsOwnSettingsWhoeverRunsBesideIt() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = RequestsTest.model(manager);
      var decoding = Backends.decoding(llama);
      var alone = new ArrayList<String>();
      var expected = new TreeMap<Integer, String>();
      for (var each : mixed(llama, requests(4, 36), alone)) {
        expected.put(expected.size(), answers(llama, decoding, List.of(each), 1).get(0));
      }
      assertThat(alone.stream().distinct().count()).isGreaterThan(12);
      for (var sizes : List.of(new int[] {1, 3}, new int[] {4, 1000}, new int[] {36, 50})) {
        var heard = new ArrayList<String>();
        var requests = mixed(llama, requests(4, 36), heard);
        assertThat(answers(llama, inPieces(decoding, sizes[1]), requests, sizes[0]))
            .as("%d at once, %d tokens of prompts before a step", sizes[0], sizes[1])
            .isEqualTo(expected);
        assertThat(heard).isEqualTo(alone);
      }
    }
  }

  /**
   * What is known of prompts is copied for a prefill: where there is no memory for all, some join
   * after others.
   */
  @Test
  void whatIsKnownCountsInAPrefill() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var small = RequestsTest.model(manager);
      var asked = new ArrayList<Long>();
      var backend =
          (Backend)
              Proxy.newProxyInstance(
                  Backend.class.getClassLoader(),
                  new Class<?>[] {Backend.class},
                  (proxy, method, given) -> {
                    if (method.getName().equals("fillsBlocks")) {
                      return false;
                    }
                    if (method.getName().equals("memory") && (long) given[0] < Long.MAX_VALUE) {
                      asked.add((long) given[0]);
                      return new Backend.Memory("test", asked.getFirst() - 1);
                    }
                    return method.invoke(small.backend(), given);
                  });
      manager.getEngine().setRandomSeed(5);
      var llama = RandomLlama.create(small.config(), manager, Dtype.F32, 5, 4, backend, 0);
      var random = new Random(1);
      int[] prompt = random.ints(82, 10, 70).toArray();
      var requests = new ArrayList<Request>();
      for (int i = 0; i < 60; i++) {
        requests.add(new Request(prompt, GREEDY.withMaxNewTokens(2), i));
      }
      var expected = answers(small, ModelSession.of(small), requests.subList(0, 1), 1).get(0);
      assertThat(answers(llama, ModelSession.of(llama), requests, 60).values())
          .hasSize(60)
          .containsOnly(expected);
      // 24 of 82 tokens are less than 2,048, 25 are more
      long known = MemoryNeed.cacheBytes(llama.config(), Dtype.F32, 25, 82);
      long layer = MemoryNeed.layerBytes(llama.config(), Dtype.F32, 25 * 82);
      assertThat(asked).containsOnly(known + Math.max(known, 2 * layer)).hasSize(2);
    }
  }

  /** A session is for the widest of all choices, whichever sequence comes first. */
  @Test
  void aSessionIsForTheWidestChoice() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = RequestsTest.model(manager);
      var decoding = Backends.decoding(llama);
      var widths = new ArrayList<Integer>();
      var routers = List.of(Router.fixed(1), Router.uniform(5), Router.none());
      var requests = new ArrayList<Request>();
      for (var request : requests(4, 3)) {
        requests.add(
            request.withRouting(RoutingSettings.DEFAULT.withRouter(routers.get(requests.size()))));
      }
      answers(
          llama,
          new DelegatingSession.Provider(decoding) {
            @Override
            public DecodeSession begin(int sequences, int tokens, ForwardContext context) {
              widths.add(context.routing().width());
              return super.begin(sequences, tokens, context);
            }
          },
          requests,
          3);
      assertThat(widths).containsExactly(5);
    }
  }

  /** A long prompt is run some pieces before each step of the others. */
  @Test
  void noStepWaitsForAWholePrompt() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = RequestsTest.model(manager);
      var shorter = new Request(new int[] {5, 6, 7}, GREEDY.withMaxNewTokens(30), 0);
      var brief = new Request(new int[] {8}, GREEDY.withMaxNewTokens(1), 1);
      var longer = new Request(new Random(1).ints(80, 10, 70).toArray(), GREEDY, 2);
      var tokens = new int[3];
      var before = new ArrayList<Integer>();
      new Generator(
              llama,
              inPieces(Backends.decoding(llama), 8),
              ForwardContext.inference(new RoutingSettings(2, 1), Flags.of(ForwardMode.AUTO)))
          .generate(
              List.of(shorter, brief, longer),
              2, // the last joins when the second has ended
              new AnswerListener() {
                @Override
                public void onToken(int request, int token) {
                  if (request == 2 && tokens[2] == 0) {
                    before.add(tokens[0]);
                  }
                  tokens[request]++;
                }

                @Override
                public void onAnswer(int request, int[] answer) {}

                @Override
                public void onFailure(int request, UserException reason) {
                  throw reason;
                }
              });
      // its own prefill's, a step's, and, as half of the places are free, one behind each four of
      // the pieces before the last
      assertThat(before).containsExactly(4);
    }
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

  /** The same sessions with so few blocks. */
  static DecodeSession.Provider withBlocks(DecodeSession.Provider decoding, int blocks) {
    return new DelegatingSession.Provider(decoding) {
      @Override
      public DecodeSession begin(int sequences, int tokens, ForwardContext context) {
        return new DelegatingSession(super.begin(sequences, tokens, context)) {
          @Override
          public int blocks() {
            return blocks;
          }

          @Override
          public int[] step(List<Next> rows, boolean goesOn) {
            for (var row : rows) {
              assertThat(Arrays.stream(row.blocks()).max().orElseThrow()).isLessThan(blocks);
            }
            return super.step(rows, goesOn);
          }
        };
      }
    };
  }

  /** Prompts and answers of up to three blocks each. */
  @Test
  void whoFindsNoBlockIsPutBackAndGoesOn() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = RequestsTest.model(manager);
      var decoding = Backends.decoding(llama);
      var requests = requests(6, 24);
      var expected = answers(llama, decoding, requests, 1);
      for (int blocks : new int[] {3, 4, 5, 9}) {
        for (int atOnce : new int[] {4, 24}) {
          assertThat(answers(llama, withBlocks(decoding, blocks), requests, atOnce))
              .as("%d blocks, %d at once", blocks, atOnce)
              .isEqualTo(expected);
        }
      }
      var lengths = requests.stream().map(each -> each.prompt().length).toList();
      var few = answers(llama, withBlocks(decoding, 2), requests, 4);
      for (int i = 0; i < lengths.size(); i++) {
        if (lengths.get(i) > 64) {
          assertThat(few.get(i)).contains("a sequence of " + lengths.get(i) + " tokens");
        } else {
          assertThat(few.get(i)).isEqualTo(expected.get(i));
        }
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
    assertThat(Beginnings.shared(prompts, 32)).containsExactly(64, 64, 64, 64, 64, 64, 0);
    prompts.add(prompts.getFirst().clone()); // the same once more: all but the last step
    assertThat(Beginnings.shared(prompts, 32)[0]).isEqualTo(64);
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = RequestsTest.model(manager);
      // those that end at once leave what they begin with, too
      for (var config :
          List.of(
              GREEDY.withMaxNewTokens(4),
              GenerationConfig.greedy(IntStream.range(0, 70).boxed().toList(), 90))) {
        assertThat(spared(llama, prompts, config)).isEqualTo(6 * 64);
      }
    }
  }

  private static long spared(Llama llama, List<int[]> prompts, GenerationConfig config) {
    var spared = new long[1];
    var context = ForwardContext.inference(new RoutingSettings(2, 1), Flags.of(ForwardMode.AUTO));
    new Generator(llama, inPieces(Backends.decoding(llama), 30), context)
        .generate(
            prompts.stream().map(p -> new Request(p, config, 0)).toList(),
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
    return spared[0];
  }
}
