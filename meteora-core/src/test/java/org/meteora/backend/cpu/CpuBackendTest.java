package org.meteora.backend.cpu;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;
import static org.assertj.core.api.Assertions.withinPercentage;

import ai.djl.Device;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Random;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.meteora.lora.AdapterBank;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.Router;
import org.meteora.moe.RoutingSettings;
import org.meteora.nn.Projection;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/** What the code that works on tensors' memory does with arrays that it cannot read so. */
class CpuBackendTest {
  private static final int IN = 12;
  private static final int OUT = 10;
  private static final int TOKENS = 5;
  private static final int[] RANKS = {3, 1, 2};
  private static final int TOTAL = 6;
  private static final double[] SCALES = {2, 0.5, 1};
  private static final RoutingSettings ROUTING = new RoutingSettings(2, 1);

  private final Random random = new Random(11);
  private final float[] x = random(TOKENS * IN);
  private final float[] weight = random(OUT * IN);
  private final float[] gate = random(3 * IN);
  private final float[] a = random(TOTAL * IN);
  private final float[] b = random(OUT * TOTAL);

  private float[] random(int size) {
    var result = new float[size];
    for (int i = 0; i < size; i++) {
      result[i] = (float) random.nextGaussian();
    }
    return result;
  }

  private GatedLinear layer(NDManager manager, NDArray gate, NDArray a, NDArray b) {
    return layer(manager, gate, a, b, 0);
  }

  private GatedLinear layer(NDManager manager, NDArray gate, NDArray a, NDArray b, double dropout) {
    return new GatedLinear(
        manager.create(weight, Ops.shape(OUT, IN)),
        null,
        new AdapterBank(gate, a, b, RANKS, SCALES),
        dropout,
        new CpuBackend(Dtype.F32),
        0,
        Projection.Q);
  }

  /** The same values, column after column. */
  private static NDArray columnMajor(NDArray array) {
    var result = Ops.transpose(Ops.contiguous(Ops.transpose(array, 0, 1)), 0, 1);
    assertThat(Ops.isRowMajor(result)).isFalse();
    return result;
  }

  @Test
  void gateAAndBInAnotherLayoutGiveTheSame() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var input = manager.create(x, Ops.shape(TOKENS, IN));
      var inference = ForwardContext.inference(ROUTING, Flags.AUTO);
      float[] expected = null;
      for (int odd = -1; odd < 3; odd++) {
        var arrays =
            new NDArray[] {
              manager.create(gate, Ops.shape(3, IN)),
              manager.create(a, Ops.shape(TOTAL, IN)),
              manager.create(b, Ops.shape(OUT, TOTAL))
            };
        if (odd >= 0) {
          arrays[odd] = columnMajor(arrays[odd]);
        }
        var layer = layer(manager, arrays[0], arrays[1], arrays[2]);
        var training = inference.forTraining(false);
        var backend = new CpuBackend(Dtype.F32);
        var tape = backend.tape(manager, List.of(layer), training);
        assertThat(tape.isPresent()).as("array %d on a tape", odd).isEqualTo(odd < 0);
        tape.ifPresent(each -> each.close());
        for (var context : List.of(inference, training)) {
          var y = layer.forward(input, context).y().toFloatArray();
          if (expected == null) {
            expected = y;
          }
          assertThat(y).as("array %d", odd).containsExactly(expected, within(1e-5f));
        }
      }
    }
  }

  @Test
  void anotherDtypeOfGateOrAIsSaidAndOfBConverted() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var input = manager.create(x, Ops.shape(TOKENS, IN));
      var context = ForwardContext.inference(ROUTING, Flags.AUTO);
      var g = manager.create(gate, Ops.shape(3, IN));
      var lora = manager.create(a, Ops.shape(TOTAL, IN));
      var half = Ops.convert(manager.create(b, Ops.shape(OUT, TOTAL)), Dtype.BF16);
      assertThatThrownBy(() -> layer(manager, Ops.convert(g, Dtype.BF16), lora, half))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining("gate is bf16 and the weight f32");
      assertThatThrownBy(() -> layer(manager, g, Ops.convert(lora, Dtype.BF16), half))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining("A is bf16 and the weight f32");
      var y = layer(manager, g, lora, half).forward(input, context).y().toFloatArray();
      var same = layer(manager, g, lora, Ops.convert(half, Dtype.F32));
      assertThat(y).containsExactly(same.forward(input, context).y().toFloatArray(), within(1e-5f));
    }
  }

  /** The gate's loss alone: ∂G = ∂logitsᵀ x, ∂x = ∂logits G; nothing reaches A and B. */
  @Test
  void aGradientOfTheLogitsAloneReachesGateAndInput() {
    var upstream = random(TOKENS * 3);
    var parameters = gradients(upstream, null);
    for (int i = 0; i < 3; i++) {
      for (int c = 0; c < IN; c++) {
        double expected = 0;
        for (int t = 0; t < TOKENS; t++) {
          expected += upstream[t * 3 + i] * x[t * IN + c];
        }
        assertThat(parameters.get("gate")[i * IN + c]).isCloseTo((float) expected, within(1e-4f));
      }
    }
    for (int t = 0; t < TOKENS; t++) {
      for (int c = 0; c < IN; c++) {
        double expected = 0;
        for (int i = 0; i < 3; i++) {
          expected += upstream[t * 3 + i] * gate[i * IN + c];
        }
        assertThat(parameters.get("x")[t * IN + c]).isCloseTo((float) expected, within(1e-4f));
      }
    }
    assertThat(parameters.get("A")).containsOnly(0);
    assertThat(parameters.get("B")).containsOnly(0);
  }

  /** Gradients are linear: those of y and logits together are the sum of each alone. */
  @Test
  void aGradientOfTheLogitsIsAddedToThatOfTheResult() {
    var ofLogits = random(TOKENS * 3);
    var ofResult = random(TOKENS * OUT);
    var one = gradients(ofLogits, null);
    var other = gradients(null, ofResult);
    for (var entry : gradients(ofLogits, ofResult).entrySet()) {
      var first = one.get(entry.getKey());
      var second = other.get(entry.getKey());
      for (int i = 0; i < first.length; i++) {
        assertThat(entry.getValue()[i])
            .as("%s %d", entry.getKey(), i)
            .isCloseTo(first[i] + second[i], within(1e-3f));
      }
    }
  }

  /** Layers of one input drop the same: twice the layer has twice the gradients. */
  @Test
  void layersOfOneInputShareWhatIsDropped() {
    var upstream = random(TOKENS * OUT);
    var once = gradients(null, upstream, 0.5, 1);
    var without = gradients(null, upstream);
    var twice = gradients(null, upstream, 0.5, 2);
    assertThat(once.get("A")).isNotEqualTo(without.get("A"));
    for (var entry : twice.entrySet()) {
      var single = once.get(entry.getKey());
      for (int i = 0; i < single.length; i++) {
        assertThat(entry.getValue()[i])
            .as("%s %d", entry.getKey(), i)
            .isCloseTo(2 * single[i], within(1e-3f));
      }
    }
  }

  /** What is dropped depends on the seed alone: the sum is a function whose slope can be seen. */
  @Test
  void gradientsBehindDropoutAreSlopes() {
    var upstream = random(TOKENS * OUT);
    var gradients = gradients(null, upstream, 0.5, 2);
    var names = List.of("x", "gate", "A", "B");
    var values = List.of(x, gate, a, b);
    for (int i = 0; i < names.size(); i++) {
      var direction = random(values.get(i).length);
      double step = 4e-3;
      double slope = 0;
      for (int sign : new int[] {1, -1}) {
        var moved = new ArrayList<>(values);
        var its = values.get(i).clone();
        for (int j = 0; j < its.length; j++) {
          its[j] += (float) (sign * step * direction[j]);
        }
        moved.set(i, its);
        slope += sign * 2 * sum(moved, upstream, 0.5) / (2 * step);
      }
      double expected = 0;
      for (int j = 0; j < direction.length; j++) {
        expected += gradients.get(names.get(i))[j] * direction[j];
      }
      assertThat(slope).as(names.get(i)).isCloseTo(expected, withinPercentage(1));
    }
  }

  /** Of a layer's result times these numbers, with the same seed as {@link #gradients}. */
  private double sum(List<float[]> values, float[] upstream, double dropout) {
    try (var manager = Devices.newManager(Device.cpu());
        var tape = new CpuTape(manager)) {
      var input = manager.create(values.get(0), Ops.shape(TOKENS, IN));
      var g = manager.create(values.get(1), Ops.shape(3, IN));
      var loraA = manager.create(values.get(2), Ops.shape(TOTAL, IN));
      var loraB = manager.create(values.get(3), Ops.shape(OUT, TOTAL));
      manager.getEngine().setRandomSeed(3);
      var context =
          ForwardContext.inference(ROUTING, Flags.AUTO)
              .forTraining(true)
              .withTape(Optional.of(tape));
      var y = layer(manager, g, loraA, loraB, dropout).forward(input, context).y().toFloatArray();
      double sum = 0;
      for (int i = 0; i < y.length; i++) {
        sum += (double) y[i] * upstream[i];
      }
      return sum;
    }
  }

  private Map<String, float[]> gradients(float[] ofLogits, float[] ofResult) {
    return gradients(ofLogits, ofResult, 0, 1);
  }

  /** Of so many layers, all the same and of the same input. */
  private Map<String, float[]> gradients(
      float[] ofLogits, float[] ofResult, double dropout, int layers) {
    try (var manager = Devices.newManager(Device.cpu());
        var recording = Ops.recording();
        var tape = new CpuTape(manager)) {
      var arrays =
          new NDArray[] {
            manager.create(x, Ops.shape(TOKENS, IN)),
            manager.create(gate, Ops.shape(3, IN)),
            manager.create(a, Ops.shape(TOTAL, IN)),
            manager.create(b, Ops.shape(OUT, TOTAL))
          };
      for (var array : arrays) {
        array.setRequiresGradient(true);
      }
      manager.getEngine().setRandomSeed(3);
      var layer = layer(manager, arrays[1], arrays[2], arrays[3], dropout);
      var context =
          ForwardContext.inference(ROUTING, Flags.AUTO)
              .forTraining(true)
              .withTape(Optional.of(tape));
      for (int i = 0; i < layers; i++) {
        var output = layer.forward(arrays[0], context);
        if (ofLogits != null) {
          Ops.backward(output.gateLogits(), manager.create(ofLogits, Ops.shape(TOKENS, 3)));
        }
        if (ofResult != null) {
          Ops.backward(output.y(), manager.create(ofResult, Ops.shape(TOKENS, OUT)));
        }
      }
      tape.backward(true);
      return Map.of(
          "x", arrays[0].getGradient().toFloatArray(),
          "gate", arrays[1].getGradient().toFloatArray(),
          "A", arrays[2].getGradient().toFloatArray(),
          "B", arrays[3].getGradient().toFloatArray());
    }
  }

  /**
   * Adapters that no gate chose: tokens one after another, scattered ones, and more than a piece.
   */
  @Test
  void adaptersThatAreGivenHaveTheFormulasGradients() {
    int tokens = 600;
    var scattered = IntStream.range(0, tokens).mapToObj(t -> t < 90 ? 2 : t / 3 % 2).toList();
    for (var router : List.of(Router.fixed(1), new Router.Fixed(scattered))) {
      var input = random(tokens * IN);
      var upstream = random(tokens * OUT);
      var onTape = ofGivenAdapters(router, input, upstream, true, true);
      var recorded = ofGivenAdapters(router, input, upstream, false, true);
      var withoutInput = ofGivenAdapters(router, input, upstream, true, false);
      assertThat(withoutInput.get("x")).isNull();
      for (var entry : recorded.entrySet()) {
        var name = router + " " + entry.getKey();
        assertThat(onTape.get(entry.getKey()))
            .as(name)
            .containsExactly(entry.getValue(), within(2e-4f));
        if (!entry.getKey().equals("x")) {
          assertThat(withoutInput.get(entry.getKey()))
              .as(name)
              .isEqualTo(onTape.get(entry.getKey()));
        }
      }
    }
  }

  private Map<String, float[]> ofGivenAdapters(
      Router router, float[] input, float[] upstream, boolean onTape, boolean toInput) {
    int tokens = input.length / IN;
    try (var manager = Devices.newManager(Device.cpu());
        var recording = Ops.recording()) {
      var arrays =
          new NDArray[] {
            manager.create(input, Ops.shape(tokens, IN)),
            manager.create(a, Ops.shape(TOTAL, IN)),
            manager.create(b, Ops.shape(OUT, TOTAL))
          };
      for (int i = toInput ? 0 : 1; i < arrays.length; i++) {
        arrays[i].setRequiresGradient(true);
      }
      var layer = layer(manager, null, arrays[1], arrays[2]);
      var context =
          ForwardContext.inference(ROUTING.withRouter(router), Flags.AUTO).forTraining(true);
      var tape = new CpuBackend(Dtype.F32).tape(manager, List.of(layer), context);
      assertThat(tape).isPresent();
      var output = layer.forward(arrays[0], context.withTape(onTape ? tape : Optional.empty())).y();
      Ops.backward(output, manager.create(upstream, Ops.shape(tokens, OUT)));
      if (onTape) {
        tape.get().backward(toInput);
      }
      tape.get().close();
      var result = new HashMap<String, float[]>();
      result.put("y", output.toFloatArray());
      result.put("x", toInput ? arrays[0].getGradient().toFloatArray() : null);
      result.put("A", arrays[1].getGradient().toFloatArray());
      result.put("B", arrays[2].getGradient().toFloatArray());
      return result;
    }
  }
}
