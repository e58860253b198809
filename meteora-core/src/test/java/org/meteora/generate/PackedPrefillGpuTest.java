package org.meteora.generate;

import static org.assertj.core.api.Assertions.assertThat;

import ai.djl.Device;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Random;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.meteora.backend.Backends;
import org.meteora.backend.cuda.CudaDecoder;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.model.RandomLlama;
import org.meteora.model.SmallArchitecture;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.RoutingSettings;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/** Prompts one after another in one row, beside each alone. */
@Tag("gpu")
class PackedPrefillGpuTest {
  /** All five adapters: a rounding cannot choose another. */
  private static final ForwardContext ASKS =
      ForwardContext.inference(new RoutingSettings(5, 1), Flags.AUTO);

  /** Of roundings to 8 and 11 bits, of numbers around 1: 0.07 and 0.005 at most, as seen. */
  private static double tolerance(Dtype dtype) {
    return dtype == Dtype.BF16 ? 0.1 : 0.015;
  }

  private static Llama model(NDManager manager, Dtype dtype) {
    manager.getEngine().setRandomSeed(5);
    var backend = Backends.of(manager, dtype);
    return RandomLlama.create(SmallArchitecture.create(), manager, dtype, 5, 4, backend, 0);
  }

  /** Some that are one token, some that begin alike. */
  private static List<int[]> prompts() {
    var random = new Random(3);
    var header = random.ints(70, 1, 70).toArray();
    var prompts = new ArrayList<int[]>();
    for (int length : new int[] {5, 1, 78, 23, 1, 71, 40}) {
      var prompt = random.ints(length, 1, 70).toArray();
      if (length > 70) {
        System.arraycopy(header, 0, prompt, 0, 70);
      }
      prompts.add(prompt);
    }
    return prompts;
  }

  /** What is known of a prompt: its logits, and keys and values of all layers. */
  private record Outcome(float[] logits, List<float[]> cache) {}

  private static List<Outcome> outcome(Prefill prefill) {
    float[] logits = prefill.last().toFloatArray();
    int vocab = logits.length / prefill.cache().orElseThrow().spans().size();
    var all = new ArrayList<Outcome>();
    for (var span : prefill.cache().orElseThrow().spans()) {
      var values = new ArrayList<float[]>();
      for (int layer = 0; layer < prefill.cache().orElseThrow().layers(); layer++) {
        var its = prefill.cache().orElseThrow().layer(layer);
        for (var store : List.of(its.keys(), its.values())) {
          try (var scope = store.getManager().newSubManager()) {
            var columns =
                prefill.cache().orElseThrow().columns(store, span.from(), span.count(), scope);
            var row = Ops.narrow(columns, 0, span.row(), 1);
            values.add(Ops.cast(row, Dtype.F32).toFloatArray());
          }
        }
      }
      int at = all.size() * vocab;
      all.add(new Outcome(Arrays.copyOfRange(logits, at, at + vocab), values));
    }
    return all;
  }

  private static double worst(Outcome a, Outcome b) {
    double worst = worst(a.logits, b.logits);
    for (int i = 0; i < a.cache.size(); i++) {
      worst = Math.max(worst, worst(a.cache.get(i), b.cache.get(i)));
    }
    return worst;
  }

  private static double worst(float[] a, float[] b) {
    assertThat(a).hasSameSizeAs(b);
    double worst = 0;
    for (int i = 0; i < a.length; i++) {
      assertThat(a[i]).isFinite();
      worst = Math.max(worst, Math.abs(a[i] - b[i]));
    }
    return worst;
  }

  @ParameterizedTest
  @EnumSource(names = {"BF16", "F16"})
  void everyPromptIsComputedAsAlone(Dtype dtype) {
    var prompts = prompts();
    List<Optional<Known>> nothing = Collections.nCopies(prompts.size(), Optional.empty());
    try (var manager = Devices.newManager(Device.gpu())) {
      var llama = model(manager, dtype);
      assertThat(llama.backend().runsPacked(llama.config())).isTrue();
      var expected = new ArrayList<Outcome>();
      for (var prompt : prompts) {
        try (var alone =
            new PaddedPrefill(llama, 0, List.of(prompt), nothing.subList(0, 1), true)) {
          alone.run(alone.left(), ASKS);
          expected.addAll(outcome(alone));
        }
      }
      for (int most : new int[] {1, 7, 50, 1000}) {
        try (var pool = llama.newPool(manager, 4);
            var packed = OneRowPrefill.packed(llama, prompts, nothing, true)) {
          run(packed, most, prompts.stream().mapToInt(prompt -> prompt.length).sum());
          check(dtype + ", pieces of " + most, outcome(packed), expected, dtype);
          int[] blocks = {3, 1, 0};
          var columns = Known.columns(packed.cache().orElseThrow().spans().get(2), 0, blocks);
          llama.backend().ops().copyColumns(packed.cache().orElseThrow(), pool, columns);
          var begins = Optional.of(new Known(pool, blocks, 64));
          var hits = new ArrayList<>(nothing);
          hits.set(2, begins);
          hits.set(5, begins);
          try (var again = OneRowPrefill.packed(llama, prompts, hits, true)) {
            run(again, most, prompts.stream().mapToInt(prompt -> prompt.length).sum() - 2 * 64);
            check(dtype + ", beginnings known", outcome(again), expected, dtype);
          }
        }
      }
    }
  }

  private static void run(OneRowPrefill prefill, int most, int tokens) {
    int done = 0;
    while (!prefill.isDone()) {
      var pieces = prefill.next(most);
      int its = pieces.stream().mapToInt(OneRowPrefill.Piece::count).sum();
      assertThat(its).isBetween(1, most);
      prefill.run(pieces, ASKS);
      done += its;
    }
    assertThat(done).isEqualTo(tokens);
  }

  /** By few rows' plan and by many rows': the logits are those of the model's own head. */
  @ParameterizedTest
  @ValueSource(ints = {1, 3, 16, 17, 40})
  void firstTokensAreChosenFromWhatTheLastLayerGave(int count) {
    var random = new Random(count);
    var prompts = new ArrayList<int[]>();
    for (int i = 0; i < count; i++) {
      prompts.add(random.ints(1 + random.nextInt(90), 1, 70).toArray());
    }
    int all = prompts.stream().mapToInt(prompt -> prompt.length).sum();
    List<Optional<Known>> nothing = Collections.nCopies(count, Optional.empty());
    try (var manager = Devices.newManager(Device.gpu())) {
      var llama = model(manager, Dtype.BF16);
      try (var decoder = new CudaDecoder(llama, ASKS.routing(), false);
          var logits = OneRowPrefill.packed(llama, prompts, nothing, true);
          var filled = OneRowPrefill.packed(llama, prompts, nothing, false)) {
        run(logits, 100, all);
        run(filled, 100, all);
        float[] expected = logits.last().toFloatArray();
        decoder.begin(count, 100, ASKS);
        var columns = new ArrayList<KvCache.Columns>();
        var rows = new ArrayList<DecodeSession.Next>();
        for (int i = 0; i < count; i++) {
          int[] blocks = {4 * i, 4 * i + 1, 4 * i + 2};
          int last = prompts.get(i).length - 1;
          columns.addAll(Known.columns(filled.cache().orElseThrow().spans().get(i), 0, blocks));
          rows.add(next(blocks, last, prompts.get(i)[last], i % 2 == 0 ? 7 : 8));
        }
        decoder.join(filled.cache().orElseThrow(), columns);
        int[] first = decoder.first(rows, filled.last());
        var own = new float[70];
        for (int i = 0; i < count; i++) {
          decoder.logits(i, own);
          int banned = rows.get(i).banned()[0];
          assertThat(own[banned]).isEqualTo(Float.NEGATIVE_INFINITY);
          own[banned] = expected[70 * i + banned];
          assertThat(worst(own, Arrays.copyOfRange(expected, 70 * i, 70 * i + 70)))
              .isLessThan(tolerance(Dtype.BF16));
          own[banned] = Float.NEGATIVE_INFINITY;
          int largest = 0;
          for (int token = 1; token < 70; token++) {
            largest = own[token] > own[largest] ? token : largest;
          }
          assertThat(first[i]).isEqualTo(largest);
        }
        // the steps that follow know how long the sequences are
        var following = new ArrayList<DecodeSession.Next>();
        for (int i = 0; i < count; i++) {
          int length = prompts.get(i).length;
          following.add(next(rows.get(i).blocks(), length, first[i], 7));
        }
        int[] second = decoder.step(following, false);
        decoder.first(rows.subList(0, 1), Ops.narrow(filled.last(), 0, 0, 1));
        assertThat(decoder.step(following, false)).isEqualTo(second);
      }
    }
  }

  private static DecodeSession.Next next(int[] blocks, int length, int token, int banned) {
    var config = GenerationConfig.greedy(List.of(), 100);
    return new DecodeSession.Next(
        blocks, length, token, new int[] {banned}, 0, 0, config, Optional.empty());
  }

  private static void check(String what, List<Outcome> its, List<Outcome> expected, Dtype dtype) {
    for (int i = 0; i < expected.size(); i++) {
      assertThat(worst(its.get(i), expected.get(i)))
          .as("%s, prompt %d", what, i)
          .isLessThan(tolerance(dtype));
    }
  }

  /** Answers of 16-bit sums differ where two tokens are as likely, and then in all that follows. */
  @Test
  void mostAnswersAreThoseOfEachAlone() {
    var requests = BatchingTest.requests(6, 24);
    try (var manager = Devices.newManager(Device.gpu())) {
      var llama = model(manager, Dtype.BF16);
      var expected = BatchingTest.answers(llama, ModelSession.of(llama), requests, 1);
      try (var decoding = BatchingTest.inPieces(Backends.decoding(llama), 30)) {
        for (var provider : List.of(decoding, ModelSession.of(llama))) {
          var answers = BatchingTest.answers(llama, provider, requests, 5);
          assertThat(answers.keySet()).isEqualTo(expected.keySet());
          long same =
              answers.keySet().stream()
                  .filter(each -> answers.get(each).equals(expected.get(each)))
                  .count();
          assertThat(same).isGreaterThan(requests.size() / 2);
        }
      }
    }
  }

  /**
   * Every kind of router in one run, prompts in pieces, some heard: of each token once, and of most
   * the same as of each alone.
   */
  @Test
  void eachIsRoutedByItsOwnSettings() {
    try (var manager = Devices.newManager(Device.gpu())) {
      var llama = model(manager, Dtype.F16);
      var alone = new ArrayList<String>();
      var expected = new ArrayList<String>();
      for (var each : BatchingTest.mixed(llama, BatchingTest.requests(4, 24), alone)) {
        expected.add(BatchingTest.answers(llama, ModelSession.of(llama), List.of(each), 1).get(0));
      }
      for (var provider : List.of(ModelSession.of(llama), Backends.decoding(llama))) {
        var heard = new ArrayList<String>();
        var requests = BatchingTest.mixed(llama, BatchingTest.requests(4, 24), heard);
        Map<Integer, String> answers;
        try (var decoding = BatchingTest.inPieces(provider, 30)) {
          answers = BatchingTest.answers(llama, decoding, requests, 5);
        }
        int same = 0;
        for (int i = 0; i < requests.size(); i++) {
          if (answers.get(i).equals(expected.get(i))) {
            same++;
            var its = heard.get(i).split(" ");
            var beside = alone.get(i).split(" ");
            assertThat(its).as("%d", i).hasSameSizeAs(beside);
            long alike =
                IntStream.range(0, its.length).filter(j -> its[j].equals(beside[j])).count();
            assertThat(alike).as("%d", i).isGreaterThanOrEqualTo(its.length * 9L / 10);
          }
        }
        assertThat(same).isGreaterThan(requests.size() / 2);
      }
    }
  }

  @Test
  void float32IsPadded() {
    try (var manager = Devices.newManager(Device.gpu())) {
      var llama = model(manager, Dtype.F32);
      assertThat(llama.backend().runsPacked(llama.config())).isFalse();
    }
  }
}
