package org.meteora.moe;

import static org.assertj.core.api.Assertions.assertThat;

import ai.djl.Device;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.meteora.backend.Backends;
import org.meteora.cuda.driver.Cuda;
import org.meteora.lora.AdapterBank;
import org.meteora.model.RandomLlama;
import org.meteora.nn.Projection;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * The loop on several streams against the loop on one, many times over, while memory goes from hand
 * to hand.
 */
@Tag("gpu")
class ParallelGpuTest {
  private static final int IN = 512;
  private static final int OUT = 768;

  @BeforeEach
  void needsGpu() {
    Assumptions.assumeTrue(Cuda.isAvailable(), "no CUDA GPU on this machine");
  }

  private static AdapterBank bank(NDManager manager, Dtype dtype) {
    var bank = RandomLlama.bank(new long[] {OUT, IN}, manager, dtype, 12, 8).withTransposedB();
    var ranks = bank.ranks().clone();
    ranks[3] = 0; // one that does not target this layer
    ranks[5] = 16;
    return new AdapterBank(bank.gate(), bank.loraA(), bank.loraB(), ranks, bank.scales());
  }

  private static double error(float[] actual, float[] expected) {
    double difference = 0;
    double norm = 0;
    for (int i = 0; i < expected.length; i++) {
      difference += Math.pow(actual[i] - expected[i], 2);
      norm += Math.pow(expected[i], 2);
    }
    assertThat(norm).isPositive();
    return Math.sqrt(difference / norm);
  }

  private static float[] floats(NDArray array) {
    return Ops.cast(array, Dtype.F32).toFloatArray();
  }

  @Test
  void inferenceEqualsTheLoop() {
    for (var dtype : List.of(Dtype.F32, Dtype.BF16)) {
      double worst = 0;
      try (var manager = Devices.newManager(Device.gpu());
          var recording = Ops.notRecording()) {
        var context =
            ForwardContext.inference(new RoutingSettings(2, 1), Flags.of(ForwardMode.ALL));
        var weight = RandomLlama.normal(manager, dtype, 0.05, OUT, IN);
        var layer =
            new GatedLinear(
                weight,
                null,
                bank(manager, dtype),
                0,
                Backends.of(manager, dtype),
                0,
                Projection.Q);
        for (int round = 0; round < 100; round++) {
          int tokens = 1 + round * 37 % 700;
          try (var scope = manager.newSubManager()) {
            // four layers' outputs one after the other, each freed while the next is computed
            var x = RandomLlama.normal(scope, dtype, 1, tokens, IN);
            var results = new ArrayList<float[]>();
            for (var mode : List.of(ForwardMode.ALL, ForwardMode.PARALLEL)) {
              context = context.withMode(mode);
              NDArray sum = null;
              for (int step = 0; step < 4; step++) {
                try (var own = scope.newSubManager()) {
                  var y = layer.forward(Ops.alias(own, x).mul(1 + step), context).y();
                  var next = sum == null ? y.mul(1) : sum.add(y);
                  next.attach(scope);
                  sum = next;
                }
              }
              results.add(floats(sum));
            }
            worst = Math.max(worst, error(results.get(1), results.get(0)));
          }
        }
      }
      System.err.printf("parallel, %s: error %.1e%n", dtype, worst);
      assertThat(worst).isLessThan(dtype == Dtype.F32 ? 1e-5 : 1e-2);
    }
  }

  @Test
  void trainingEqualsTheLoop() {
    double worst = 0;
    try (var manager = Devices.newManager(Device.gpu());
        var recording = Ops.recording()) {
      var context = ForwardContext.inference(new RoutingSettings(2, 1), Flags.of(ForwardMode.ALL));
      var weight = RandomLlama.normal(manager, Dtype.F32, 0.05, OUT, IN);
      var bank = bank(manager, Dtype.F32);
      var parameters = List.of(bank.gate(), bank.loraA(), bank.loraB());
      parameters.forEach(each -> each.setRequiresGradient(true));
      var layer =
          new GatedLinear(weight, null, bank, 0, Backends.of(manager, Dtype.F32), 0, Projection.Q);
      var upstream = RandomLlama.normal(manager, Dtype.F32, 1, 900, OUT);
      for (int round = 0; round < 40; round++) {
        int tokens = 20 + round * 53 % 800;
        var inputs = RandomLlama.normal(manager, Dtype.F32, 1, tokens, IN);
        var results = new ArrayList<List<float[]>>();
        for (var mode : List.of(ForwardMode.ALL, ForwardMode.PARALLEL)) {
          context = context.withMode(mode);
          try (var scope = manager.newSubManager()) {
            var x = Ops.alias(scope, inputs).mul(1);
            var leaf = Ops.detach(scope, x);
            leaf.setRequiresGradient(true);
            // twice through the layer, so that side streams follow on side streams
            var first = layer.forward(leaf, context.forTraining(true)).y();
            var second = layer.forward(leaf.mul(2), context.forTraining(true)).y();
            var y = first.add(second);
            var gradient = Ops.narrow(upstream, 0, 0, tokens);
            gradient.attach(scope);
            Ops.backward(y, gradient);
            var got = new ArrayList<float[]>();
            got.add(floats(y));
            got.add(floats(leaf.getGradient()));
            for (var parameter : parameters) {
              var own = parameter.getGradient();
              got.add(floats(own));
              own.subi(own); // gradients add up
              own.close();
            }
            results.add(got);
          }
        }
        inputs.close();
        for (int i = 0; i < results.get(0).size(); i++) {
          worst = Math.max(worst, error(results.get(1).get(i), results.get(0).get(i)));
        }
      }
    }
    System.err.printf("parallel, training: error %.1e%n", worst);
    assertThat(worst).isLessThan(1e-4);
  }
}
