package org.meteora.moe;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.training.ParameterStore;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.OptionalInt;
import java.util.Random;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.meteora.UserException;
import org.meteora.backend.Backends;
import org.meteora.lora.AdapterBank;
import org.meteora.nn.Projection;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

class GatedLinearTest {
  private static final int IN = 40;
  private static final int OUT = 24;

  /** The layer in plain Java doubles. */
  private static double[][] reference(
      float[] x,
      float[] w,
      float[] g,
      float[] a,
      float[] b,
      int[] ranks,
      double[] scales,
      int tokens,
      int k,
      double t,
      boolean training) {
    int n = ranks.length;
    int total = Arrays.stream(ranks).sum();
    var y = new double[tokens][OUT];
    for (int token = 0; token < tokens; token++) {
      var logits = new double[n];
      for (int i = 0; i < n; i++) {
        for (int c = 0; c < IN; c++) {
          logits[i] += (double) x[token * IN + c] * g[i * IN + c];
        }
      }
      var order =
          java.util.stream.IntStream.range(0, n)
              .boxed()
              .sorted((p, q) -> Double.compare(logits[q], logits[p]))
              .toList();
      double sum = 0;
      var weight = new double[n];
      for (int j = 0; j < k; j++) {
        int i = order.get(j);
        weight[i] = Math.exp((logits[i] - logits[order.get(0)]) / (training ? 1 : t));
        sum += weight[i];
      }
      for (int o = 0; o < OUT; o++) {
        for (int c = 0; c < IN; c++) {
          y[token][o] += (double) x[token * IN + c] * w[o * IN + c];
        }
      }
      int at = 0;
      for (int i = 0; i < n; i++) {
        for (int r = 0; r < ranks[i]; r++) {
          double z = 0;
          for (int c = 0; c < IN; c++) {
            z += (double) x[token * IN + c] * a[(at + r) * IN + c];
          }
          for (int o = 0; o < OUT; o++) {
            y[token][o] += weight[i] / sum * scales[i] * z * b[o * total + at + r];
          }
        }
        at += ranks[i];
      }
    }
    return y;
  }

  private static float[] random(Random random, int size) {
    var result = new float[size];
    for (int i = 0; i < size; i++) {
      result[i] = (float) random.nextGaussian();
    }
    return result;
  }

  private void check(int[] ranks, int tokens, int k, boolean sameAdapter, boolean training) {
    var random = new Random(ranks.length * 1000L + tokens * 10L + k);
    int n = ranks.length;
    int total = Arrays.stream(ranks).sum();
    var x = random(random, tokens * IN);
    var w = random(random, OUT * IN);
    var g = random(random, n * IN);
    var a = random(random, total * IN);
    var b = random(random, OUT * total);
    if (sameAdapter) {
      for (int i = 0; i < x.length; i++) {
        x[i] = Math.abs(x[i]);
      }
      Arrays.fill(g, (n - 1) * IN, n * IN, 3);
    }
    var scales = new double[n];
    Arrays.setAll(scales, i -> 0.5 + 0.25 * i);
    double temperature = 2.5;
    var expected = reference(x, w, g, a, b, ranks, scales, tokens, k, temperature, training);
    double norm = 0;
    for (var row : expected) {
      for (double value : row) {
        norm += value * value;
      }
    }
    try (var manager = Devices.newManager(ai.djl.Device.cpu())) {
      for (var mode : ForwardMode.values()) {
        if (mode == ForwardMode.INVARIANT && Arrays.stream(ranks).anyMatch(rank -> rank == 1)) {
          continue; // refused
        }
        var context =
            ForwardContext.inference(
                new RoutingSettings(k, mode == ForwardMode.REFERENCE ? 1 : temperature),
                Flags.of(mode));
        var bank =
            new AdapterBank(
                manager.create(g, Ops.shape(n, IN)),
                manager.create(a, Ops.shape(total, IN)),
                manager.create(b, Ops.shape(OUT, total)),
                ranks,
                scales);
        var layer =
            new GatedLinear(
                manager.create(w, Ops.shape(OUT, IN)),
                null,
                bank,
                0,
                Backends.of(manager, Dtype.F32),
                0,
                Projection.Q);
        var target =
            mode == ForwardMode.REFERENCE
                ? reference(x, w, g, a, b, ranks, scales, tokens, k, 1, true)
                : expected;
        var y =
            layer
                .forward(
                    manager.create(x, Ops.shape(tokens, IN)),
                    training ? context.forTraining(false) : context)
                .y()
                .toFloatArray();
        double difference = 0;
        for (int i = 0; i < y.length; i++) {
          difference += Math.pow(y[i] - target[i / OUT][i % OUT], 2);
        }
        assertThat(Math.sqrt(difference / norm))
            .as("%s %s tokens=%d k=%d", mode, Arrays.toString(ranks), tokens, k)
            .isLessThan(1e-5);
      }
    }
  }

  @Test
  void everyModeIsTheFormula() {
    for (boolean training : new boolean[] {false, true}) {
      for (int tokens : new int[] {1, 3, 37}) {
        for (int k = 1; k <= 5; k++) {
          check(new int[] {4, 4, 4, 4, 4}, tokens, k, false, training);
          check(new int[] {8, 0, 3, 1, 16}, tokens, k, false, training);
        }
        check(new int[] {8}, tokens, 1, false, training);
        check(new int[] {8, 2, 5}, tokens, 1, true, training);
      }
    }
  }

  @Test
  void everyModesGradientsAgreeWithTheFormulas() {
    var random = new Random(5);
    int[] ranks = {3, 0, 5, 1};
    int total = 9;
    int tokens = 7;
    var x = random(random, tokens * IN);
    var w = random(random, OUT * IN);
    var g = random(random, 4 * IN);
    var a = random(random, total * IN);
    var b = random(random, OUT * total);
    var upstream = random(random, tokens * OUT);
    Map<String, float[]> first = null;
    for (var mode : ForwardMode.values()) {
      try (var manager = Devices.newManager(ai.djl.Device.cpu());
          var recording = Ops.recording()) {
        var parameters =
            new NDArray[] {
              manager.create(x, Ops.shape(tokens, IN)),
              manager.create(g, Ops.shape(4, IN)),
              manager.create(a, Ops.shape(total, IN)),
              manager.create(b, Ops.shape(OUT, total))
            };
        for (var each : parameters) {
          each.setRequiresGradient(true);
        }
        var bank =
            new AdapterBank(
                parameters[1], parameters[2], parameters[3], ranks, new double[] {2, 1, 0.5, 1});
        var layer =
            new GatedLinear(
                manager.create(w, Ops.shape(OUT, IN)),
                null,
                bank,
                0,
                Backends.of(manager, Dtype.F32),
                0,
                Projection.Q);
        var context =
            ForwardContext.inference(new RoutingSettings(2, 1), Flags.of(mode)).forTraining(true);
        var y = layer.forward(parameters[0], context).y();
        Ops.backward(y, manager.create(upstream, Ops.shape(tokens, OUT)));
        var gradients =
            Map.of(
                "x", parameters[0].getGradient().toFloatArray(),
                "gate", parameters[1].getGradient().toFloatArray(),
                "A", parameters[2].getGradient().toFloatArray(),
                "B", parameters[3].getGradient().toFloatArray());
        if (first == null) {
          first = gradients;
        }
        for (var entry : gradients.entrySet()) {
          var expected = first.get(entry.getKey());
          double difference = 0;
          double norm = 0;
          for (int i = 0; i < expected.length; i++) {
            difference += Math.pow(entry.getValue()[i] - expected[i], 2);
            norm += Math.pow(expected[i], 2);
          }
          assertThat(norm).isPositive();
          assertThat(Math.sqrt(difference / norm))
              .as("%s %s", mode, entry.getKey())
              .isLessThan(1e-5);
        }
      }
    }
  }

  private static AdapterBank twoAdapters(NDManager manager, Random random) {
    return new AdapterBank(
        manager.create(random(random, 2 * IN), Ops.shape(2, IN)),
        manager.create(random(random, 8 * IN), Ops.shape(8, IN)),
        manager.create(random(random, 8 * OUT), Ops.shape(OUT, 8)),
        new int[] {4, 4},
        new double[] {2, 2});
  }

  @Test
  void readsBTransposedWithoutACopyWhereItIsKeptSo() {
    try (var manager = Devices.newManager(ai.djl.Device.cpu())) {
      var random = new Random(4);
      var plain = twoAdapters(manager, random);
      var kept =
          new AdapterBank(
                  plain.gate(),
                  plain.loraA(),
                  manager.create(plain.loraB().toFloatArray(), plain.loraB().getShape()),
                  plain.ranks(),
                  plain.scales())
              .withTransposedB();
      assertThat(kept.loraB().toFloatArray()).containsExactly(plain.loraB().toFloatArray());
      assertThat(Ops.isRowMajor(plain.loraB())).isTrue();
      assertThat(Ops.isRowMajor(kept.loraB())).isFalse();

      var weight = manager.create(random(random, OUT * IN), Ops.shape(OUT, IN));
      var x = manager.create(random(random, 5 * IN), Ops.shape(5, IN));
      var outputs = new float[2][];
      var transposed = new float[2][];
      for (var bank : List.of(plain, kept)) {
        var which = bank == plain ? 0 : 1;
        var context = ForwardContext.inference(RoutingSettings.DEFAULT, Flags.AUTO);
        var layer =
            new GatedLinear(
                weight, null, bank, 0, Backends.of(manager, Dtype.F32), 0, Projection.Q);
        outputs[which] = layer.forward(x, context).y().toFloatArray();
        transposed[which] = layer.layout().loraBTransposed(false).toFloatArray();
        assertThat(Ops.isRowMajor(layer.layout().loraBTransposed(false))).isTrue();
        assertThat(
                Ops.dataPointer(layer.layout().loraBTransposed(false))
                    == Ops.dataPointer(bank.loraB()))
            .isEqualTo(bank == kept);
      }
      assertThat(outputs[1]).containsExactly(outputs[0]);
      assertThat(transposed[1]).containsExactly(transposed[0]);
    }
  }

  @Test
  void aStackHoldsAAndGatesOfLinearsWithOneInput() {
    try (var manager = Devices.newManager(ai.djl.Device.cpu())) {
      var random = new Random(5);
      var banks = List.of(twoAdapters(manager, random), twoAdapters(manager, random));
      var parts = banks.stream().flatMap(bank -> Stream.of(bank.loraA(), bank.gate())).toList();
      var before = parts.stream().map(NDArray::toFloatArray).toList();
      var layouts = banks.stream().map(bank -> new BankLayout(manager, bank, Dtype.F32)).toList();
      var stacked = BankLayout.stack(layouts);
      // 8 rows of A of each, 2 of the gate of each, and whole eights
      assertThat(stacked.getShape()).isEqualTo(Ops.shape(24, IN));
      long[] rows = {0, 16, 8, 18};
      for (int i = 0; i < 4; i++) {
        assertThat(parts.get(i).toFloatArray()).containsExactly(before.get(i));
        assertThat(Ops.dataPointer(parts.get(i)))
            .isEqualTo(Ops.dataPointer(stacked) + 4 * IN * rows[i]);
      }
      assertThat(Ops.narrow(stacked, 0, 20, 4).toFloatArray()).containsOnly(0);
      parts.get(3).muli(2); // what a parameter becomes, the stack has
      assertThat(Ops.narrow(stacked, 0, 18, 2).toFloatArray())
          .containsExactly(parts.get(3).toFloatArray());

      assertThat(BankLayout.stack(layouts)).isSameAs(stacked);
      assertThatThrownBy(() -> BankLayout.stack(layouts.subList(1, 2)))
          .isInstanceOf(IllegalStateException.class);
    }
  }

  @Test
  void isADjlBlock() {
    try (var manager = Devices.newManager(ai.djl.Device.cpu())) {
      var random = new Random(1);
      var bank = twoAdapters(manager, random);
      var layer =
          new GatedLinear(
              manager.create(random(random, OUT * IN), Ops.shape(OUT, IN)),
              null,
              bank,
              0.1,
              Backends.of(manager, Dtype.F32),
              0,
              Projection.Q);
      var x = manager.create(random(random, 6 * IN), Ops.shape(2, 3, IN));
      var store = new ParameterStore(manager, false);
      assertThat(layer.forward(store, new NDList(x), false).singletonOrThrow().getShape())
          .isEqualTo(Ops.shape(2, 3, OUT));
      var trained = layer.forward(store, new NDList(x), true);
      assertThat(trained.get(1).getShape()).isEqualTo(Ops.shape(2, 3, 2));
      assertThat(layer.getParameters().size()).isEqualTo(4);
    }
  }

  @Test
  void inferenceAfterATrainingPassSeesTheNewParameters() {
    try (var manager = Devices.newManager(ai.djl.Device.cpu())) {
      var random = new Random(2);
      var bank = twoAdapters(manager, random);
      var context = ForwardContext.inference(RoutingSettings.DEFAULT, Flags.AUTO);
      var weight = manager.create(random(random, OUT * IN), Ops.shape(OUT, IN));
      var layer =
          new GatedLinear(weight, null, bank, 0, Backends.of(manager, Dtype.F32), 0, Projection.Q);
      var x = manager.create(random(random, 6 * IN), Ops.shape(2, 3, IN));
      for (var mode : new ForwardMode[] {ForwardMode.AUTO, ForwardMode.GATHER}) {
        context = context.withMode(mode);
        layer.forward(x, context);
        layer.forward(x, context.forTraining(true));
        bank.loraB().muli(3); // what an optimiser does
        var expected = layer.forward(x, context.forTraining(true)).y().toFloatArray();
        var actual = layer.forward(x, context).y().toFloatArray();
        for (int i = 0; i < expected.length; i++) {
          assertThat(actual[i]).isCloseTo(expected[i], within(1e-3f));
        }
      }
    }
  }

  @Test
  void flagsAreChecked() {
    assertThat(Flags.fromEnvironment(Map.of()).mode()).isEqualTo(ForwardMode.AUTO);
    assertThat(Flags.fromEnvironment(Map.of("MOELINEAR_USE_ACCELERATE_FWD", "0")).mode())
        .isEqualTo(ForwardMode.REFERENCE);
    assertThat(Flags.fromEnvironment(Map.of("MOELINEAR_FWD_INNER_LOOP_MODE", "all")).mode())
        .isEqualTo(ForwardMode.ALL);
    assertThat(Flags.fromEnvironment(Map.of("MOELINEAR_FWD_INNER_LOOP_MODE", "batch")).mode())
        .isEqualTo(ForwardMode.GATHER);
    assertThat(
            Flags.fromEnvironment(Map.of("MOELINEAR_ACCELERATE_FWD_BACKEND_TORCH_VERSION", "v2"))
                .mode())
        .isEqualTo(ForwardMode.MASKED);
    assertThat(Flags.fromEnvironment(Map.of("MOELINEAR_ACCELERATE_FWD_BACKEND", "triton")).mode())
        .isEqualTo(ForwardMode.FUSED);
    assertThat(Flags.fromEnvironment(Map.of("MOELINEAR_SINGLE_MOE_LORA", "3")).singleAdapter())
        .isEqualTo(OptionalInt.of(3));
    assertThatThrownBy(() -> Flags.fromEnvironment(Map.of("MOELINEAR_FWD_INNER_LOOP_MODE", "loop")))
        .isInstanceOf(UserException.class)
        .hasMessage("MOELINEAR_FWD_INNER_LOOP_MODE=loop: choose one of batch, all, parallel, auto");
    assertThatThrownBy(() -> Flags.fromEnvironment(Map.of("MOELINEAR_SINGLE_MOE_LORA", "x")))
        .isInstanceOf(UserException.class);
  }
}
