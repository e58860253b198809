package org.meteora.generate;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import ai.djl.Device;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.OptionalInt;
import java.util.Random;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.meteora.UserException;
import org.meteora.backend.Backends;
import org.meteora.io.Jsonl;
import org.meteora.model.BlockTables;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.model.RandomLlama;
import org.meteora.model.llama.LlamaConfig;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardMode;
import org.meteora.moe.Router;
import org.meteora.moe.RoutingSettings;
import org.meteora.router.Routers;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/** What comes of a token is the same to the last bit, whatever is run beside it. */
class BatchInvarianceTest {
  private static final ForwardContext ASKS =
      ForwardContext.inference(new RoutingSettings(2, 1), Flags.of(ForwardMode.INVARIANT));

  /** Of sizes that are no multiples of a vector, and long enough to be summed in parts. */
  private static Llama model(NDManager manager) {
    return model(manager, 700, 4);
  }

  private static Llama model(NDManager manager, int intermediate, int rank) {
    manager.getEngine().setRandomSeed(5);
    var sizes =
        Jsonl.JSON
            .createObjectNode()
            .put("vocab_size", 171)
            .put("hidden_size", 108)
            .put("intermediate_size", intermediate)
            .put("num_hidden_layers", 2)
            .put("num_attention_heads", 6)
            .put("num_key_value_heads", 2);
    return RandomLlama.create(
        LlamaConfig.parse(sizes, "test"),
        manager,
        Dtype.F32,
        5,
        rank,
        Backends.of(manager, Dtype.F32, Flags.of(ForwardMode.INVARIANT)),
        0);
  }

  /** Logits of the last tokens of prompts, whose passes are so long, and of five steps of all. */
  private static List<float[]> logits(Llama llama, List<int[]> prompts, int passes, int atOnce) {
    var result = new ArrayList<float[]>();
    for (int from = 0; from < prompts.size(); from += atOnce) {
      var some = prompts.subList(from, Math.min(prompts.size(), from + atOnce));
      int blocks = 5 * some.size();
      try (var pool = llama.newPool(llama.manager(), blocks)) {
        var tables =
            IntStream.range(0, some.size())
                .mapToObj(i -> IntStream.range(0, 5).map(j -> blocks - 1 - 5 * i - j).toArray())
                .toArray(int[][]::new);
        var prefill =
            OneRowPrefill.intoBlocks(
                llama, pool, some, Arrays.asList(tables), new int[some.size()], true);
        while (!prefill.isDone()) {
          prefill.run(prefill.next(passes), ASKS);
        }
        var each = new ArrayList<float[]>();
        float[] logits = prefill.last().toFloatArray();
        int vocab = logits.length / some.size();
        for (int i = 0; i < some.size(); i++) {
          each.add(Arrays.copyOfRange(logits, i * vocab, (i + 1) * vocab));
        }
        for (int step = 0; step < 5; step++) {
          add(each, step(llama, pool, tables, some, step), vocab);
        }
        result.addAll(each);
      }
    }
    return result;
  }

  private static float[] step(
      Llama llama, KvCache pool, int[][] tables, List<int[]> prompts, int step) {
    try (var scope = llama.manager().newSubManager()) {
      var ids = prompts.stream().mapToLong(prompt -> 1 + (prompt[0] + 7 * step) % 170).toArray();
      var lengths = prompts.stream().mapToInt(prompt -> prompt.length + step).toArray();
      return llama
          .next(Ops.of(scope, ids, ids.length, 1), pool, new BlockTables(tables, lengths), ASKS)
          .toFloatArray();
    }
  }

  private static void add(List<float[]> to, float[] logits, int vocab) {
    for (int i = 0; i < to.size(); i++) {
      int before = to.get(i).length;
      to.set(i, Arrays.copyOf(to.get(i), before + vocab));
      System.arraycopy(logits, i * vocab, to.get(i), before, vocab);
    }
  }

  @ParameterizedTest
  @CsvSource({"2, 4", "3, 4", "4, 4", "7, 4", "30, 4", "4, 1", "30, 1"})
  void logitsDoNotDependOnWhatIsBeside(int atOnce, int rank) {
    var random = new Random(1);
    var prompts = new ArrayList<int[]>();
    for (int i = 0; i < 30; i++) {
      prompts.add(random.ints(1 + random.nextInt(120), 1, 170).toArray());
    }
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = model(manager, 700, rank);
      var alone = logits(llama, prompts, Integer.MAX_VALUE, 1);
      var together = logits(llama, prompts, 17 * atOnce, atOnce);
      for (int i = 0; i < alone.size(); i++) {
        assertThat(alone.get(i)).hasSize(6 * 171);
        assertThat(together.get(i)).as("prompt %d", i).containsExactly(alone.get(i));
      }
    }
  }

  @Test
  void answersAreTheSameInAnyOrderAndCompany() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama = model(manager);
      var decoding = ModelSession.of(llama);
      var requests = BatchingTest.requests(8, 18);
      var expected = answers(llama, decoding, requests, 1, false);
      for (int atOnce : new int[] {2, 5, 18}) {
        for (boolean prefixes : new boolean[] {true, false}) {
          assertThat(answers(llama, decoding, requests, atOnce, prefixes)).isEqualTo(expected);
        }
      }
      assertThat(answers(llama, inPasses(decoding, 32), requests, 5, true)).isEqualTo(expected);
    }
  }

  /** The same sessions, with each prompt by itself in passes of so many tokens, as on a GPU. */
  private static DecodeSession.Provider inPasses(DecodeSession.Provider decoding, int tokens) {
    return new DelegatingSession.Provider(decoding) {
      @Override
      public OptionalInt passTokens() {
        return OptionalInt.of(tokens);
      }
    };
  }

  private static Map<Integer, String> answers(
      Llama llama,
      DecodeSession.Provider decoding,
      List<Request> requests,
      int atOnce,
      boolean prefixes) {
    var generator = new Generator(llama, decoding, ASKS);
    return BatchingTest.answers(
        prefixes ? generator : generator.withoutPrefixes(), requests, atOnce);
  }

  @Test
  void whatCannotBeHadIsRefused() {
    try (var manager = Devices.newManager(Device.cpu())) {
      assertThatThrownBy(() -> Backends.of(manager, Dtype.BF16, Flags.of(ForwardMode.INVARIANT)))
          .isInstanceOf(UserException.class)
          .hasMessage("--batch-invariant is for f32 on the CPU, not for bf16 there");
      assertThatThrownBy(() -> Flags.of(ForwardMode.MASKED).invariant())
          .isInstanceOf(UserException.class)
          .hasMessageContaining("the form masked");
      assertThat(Flags.AUTO.invariant().mode()).isEqualTo(ForwardMode.INVARIANT);
      var llama = model(manager);
      var router = Routers.of("arrow", llama, List.of("a", "b", "c", "d", "e"));
      var request = new Request(new int[] {1, 2}, GenerationConfig.greedy(List.of(), 90), 0);
      var arrow = request.withRouting(new RoutingSettings(2, 1, router));
      var fixed = request.withRouting(new RoutingSettings(1, 1, Router.fixed(2)));
      var answers = answers(llama, ModelSession.of(llama), List.of(arrow, fixed), 2, true);
      assertThat(answers.get(0)).startsWith("--batch-invariant: what the router arrow sums");
      assertThat(answers.get(1)).startsWith("[");
      var odd = model(manager, 702, 4);
      assertThat(answers(odd, ModelSession.of(odd), List.of(request), 1, true).get(0))
          .isEqualTo("--batch-invariant is for linears whose inputs are a multiple of 4, not 702");
    }
  }
}
