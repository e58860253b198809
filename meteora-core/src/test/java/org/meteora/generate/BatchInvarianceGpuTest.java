package org.meteora.generate;

import static org.assertj.core.api.Assertions.assertThat;

import ai.djl.Device;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.OptionalInt;
import java.util.Random;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.meteora.backend.Backends;
import org.meteora.io.Jsonl;
import org.meteora.model.Llama;
import org.meteora.model.RandomLlama;
import org.meteora.model.llama.LlamaConfig;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardMode;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.Router;
import org.meteora.moe.RoutingSettings;
import org.meteora.nn.KvBlock;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;

/**
 * On a GPU what comes of a sequence is the same to the last bit, whatever is run beside it:
 * answers, and all keys and values, which are of everything that was computed before them.
 */
@Tag("gpu")
class BatchInvarianceGpuTest {
  private static final ForwardContext ASKS =
      ForwardContext.inference(new RoutingSettings(2, 1), Flags.of(ForwardMode.INVARIANT));

  private static Llama model(NDManager manager, Dtype dtype, int adapters) {
    manager.getEngine().setRandomSeed(5);
    var sizes =
        Jsonl.JSON
            .createObjectNode()
            .put("vocab_size", 171)
            .put("hidden_size", 128)
            .put("intermediate_size", 192)
            .put("num_hidden_layers", 2)
            .put("num_attention_heads", 4)
            .put("num_key_value_heads", 2)
            .put("head_dim", 64)
            .put("max_position_embeddings", 200);
    return RandomLlama.create(
        LlamaConfig.parse(sizes, "test"),
        manager,
        dtype,
        adapters,
        8,
        Backends.of(manager, dtype, Flags.of(ForwardMode.INVARIANT)),
        0);
  }

  /** Prompts that begin alike for two passes of 32 tokens, for one, and not at all. */
  private static List<Request> requests(int count) {
    var random = new Random(3);
    int[] header = random.ints(80, 10, 170).toArray();
    var requests = new ArrayList<Request>();
    for (int i = 0; i < count; i++) {
      int[] prompt = random.ints(1 + random.nextInt(110), 10, 170).toArray();
      if (i % 3 > 0) {
        int shared = Math.min(prompt.length - 1, i % 3 == 1 ? 70 : 40);
        System.arraycopy(header, 0, prompt, 0, Math.max(0, shared));
      }
      var config = GenerationConfig.greedy(List.of(), 200).withMaxNewTokens(1 + random.nextInt(4));
      if (i % 5 == 2) {
        config = config.withSampling(0.8, 0.9, 20, i);
      }
      requests.add(new Request(prompt, config, i));
    }
    return requests;
  }

  /** What was generated. */
  private record Result(Map<Integer, String> answers, List<String> computed) {}

  /** Sessions with short passes, which note every row's keys and values after each step. */
  private static DecodeSession.Provider watched(
      DecodeSession.Provider decoding, List<String> computed) {
    return new DelegatingSession.Provider(decoding) {
      @Override
      public DecodeSession begin(int sequences, int tokens, ForwardContext context) {
        return new DelegatingSession(super.begin(sequences, tokens, context)) {
          @Override
          public int[] step(List<Next> rows, boolean goesOn) {
            int[] chosen = super.step(rows, goesOn);
            var pool = pool().layer(pool().layers() - 1);
            var keys = floats(pool.keys());
            var values = floats(pool.values());
            int each = keys.length / blocks();
            for (int i = 0; i < chosen.length; i++) {
              var next = rows.get(i);
              computed.add(
                  "%d tokens, then %d: %x %x"
                      .formatted(
                          next.length() + 1,
                          chosen[i],
                          hash(keys, each, next),
                          hash(values, each, next)));
            }
            return chosen;
          }
        };
      }

      @Override
      public OptionalInt passTokens() {
        assertThat(super.passTokens()).isPresent();
        return OptionalInt.of(32);
      }
    };
  }

  private static float[] floats(NDArray array) {
    try (var wide = array.toType(DataType.FLOAT32, true)) {
      return wide.toFloatArray();
    }
  }

  /** Of the keys or values of all tokens of a row. */
  private static int hash(float[] pool, int each, DecodeSession.Next row) {
    int hash = 1;
    int perToken = each / KvBlock.TOKENS; // of 2 heads
    int headDim = perToken / 2;
    for (int token = 0; token <= row.length(); token++) {
      for (int head = 0; head < 2; head++) {
        int at =
            row.blocks()[token / KvBlock.TOKENS] * each
                + (head * KvBlock.TOKENS + token % KvBlock.TOKENS) * headDim;
        for (int i = at; i < at + headDim; i++) {
          hash = 31 * hash + Float.floatToIntBits(pool[i]);
        }
      }
    }
    return hash;
  }

  private static Result generate(
      Llama llama,
      DecodeSession.Provider decoding,
      List<Request> requests,
      int atOnce,
      boolean prefixes) {
    var computed = new ArrayList<String>();
    var generator = new Generator(llama, watched(decoding, computed), ASKS);
    var answers =
        BatchingTest.answers(prefixes ? generator : generator.withoutPrefixes(), requests, atOnce);
    Collections.sort(computed);
    return new Result(answers, computed);
  }

  @ParameterizedTest
  @EnumSource(
      value = Dtype.class,
      names = {"F32", "F16", "BF16"})
  void whatIsComputedDoesNotDependOnWhatIsBeside(Dtype dtype) {
    var requests = requests(24);
    try (var manager = Devices.newManager(Device.gpu())) {
      var llama = model(manager, dtype, 5);
      try (var decoding = Backends.decoding(llama)) {
        var alone = generate(llama, decoding, requests, 1, false);
        assertThat(alone.computed()).hasSizeGreaterThan(25);
        assertThat(alone.answers().values()).allMatch(answer -> answer.startsWith("["));
        for (int atOnce : new int[] {2, 3, 24}) {
          assertThat(generate(llama, decoding, requests, atOnce, true))
              .as("%d at once", atOnce)
              .isEqualTo(alone);
        }
        assertThat(generate(llama, decoding, requests, 24, false)).isEqualTo(alone);
        var order = new ArrayList<>(alone.answers().keySet());
        Collections.shuffle(order, new Random(2));
        var shuffled =
            generate(llama, decoding, order.stream().map(requests::get).toList(), 11, true);
        assertThat(shuffled.computed()).isEqualTo(alone.computed());
        for (int i = 0; i < order.size(); i++) {
          assertThat(shuffled.answers().get(i)).isEqualTo(alone.answers().get(order.get(i)));
        }
      }
    }
  }

  @Test
  void theBaseModelToo() {
    var requests = requests(12);
    try (var manager = Devices.newManager(Device.gpu())) {
      var llama = model(manager, Dtype.BF16, 0);
      try (var decoding = Backends.decoding(llama)) {
        var alone = generate(llama, decoding, requests, 1, false);
        assertThat(generate(llama, decoding, requests, 12, true)).isEqualTo(alone);
      }
    }
  }

  /** Every kind of router, several k and T; what some hear of the routing is the same as well. */
  @Test
  void routersToo() {
    try (var manager = Devices.newManager(Device.gpu())) {
      var llama = model(manager, Dtype.BF16, 5);
      try (var decoding = Backends.decoding(llama)) {
        var alone = new ArrayList<String>();
        var expected = new ArrayList<String>();
        for (var each : BatchingTest.mixed(llama, requests(12), alone)) {
          expected.add(generate(llama, decoding, List.of(each), 1, false).answers().get(0));
        }
        var heard = new ArrayList<String>();
        var together = BatchingTest.mixed(llama, requests(12), heard);
        assertThat(generate(llama, decoding, together, 9, true).answers().values())
            .containsExactlyElementsOf(expected);
        assertThat(heard).isEqualTo(alone);
        assertThat(expected).allMatch(answer -> answer.startsWith("["));
      }
    }
  }

  @Test
  void whatRunsOperationByOperationIsRefused() {
    var router =
        new Router.Weighing() {
          @Override
          public String name() {
            return "mine";
          }

          @Override
          public NDArray weights(GatedLinear linear, NDArray x, ForwardContext context) {
            throw new AssertionError("nothing is run");
          }
        };
    try (var manager = Devices.newManager(Device.gpu())) {
      var llama = model(manager, Dtype.F32, 5);
      try (var decoding = Backends.decoding(llama)) {
        var request = requests(1).getFirst().withRouting(new RoutingSettings(2, 1, router));
        assertThat(generate(llama, decoding, List.of(request), 1, true).answers().get(0))
            .isEqualTo(
                "--batch-invariant cannot be had here: the router mine runs by tensor operations");
      }
    }
  }
}
