package org.meteora.train;

import static org.assertj.core.api.Assertions.assertThat;

import ai.djl.Device;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.meteora.model.LlamaTraining.Recompute;
import org.meteora.parallel.Collective;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.train.ShardedWeightsTest.Model;

/**
 * A base model shared among processes against the same one whole, on one GPU: the processes are
 * threads of this one, so that NCCL is not in it.
 */
@Tag("gpu")
class ShardedWeightsGpuTest {
  private static Model model(Dtype dtype, Collective sharers) {
    return new Model(Devices.newManager(Device.gpu(0)), dtype, false, sharers);
  }

  /** How far apart, in units of the largest number. */
  private static double distance(float[] actual, float[] expected) {
    assertThat(actual).hasSameSizeAs(expected);
    double largest = 0;
    double distance = 0;
    for (int i = 0; i < actual.length; i++) {
      largest = Math.max(largest, Math.abs(expected[i]));
      distance = Math.max(distance, Math.abs(actual[i] - expected[i]));
    }
    assertThat(largest).isPositive();
    return distance / largest;
  }

  @ParameterizedTest
  @CsvSource({"BF16, ALL, 1e-2", "BF16, NONE, 1e-2", "F32, ALL, 1e-5"})
  void gradientsOfTrainingSteps(Dtype dtype, Recompute recompute, double tolerance)
      throws Exception {
    float[] expected;
    try (var whole = model(dtype, Collective.single())) {
      expected = whole.gradients(recompute);
      assertThat(whole.ownPasses).isTrue();
    }
    var found =
        ShardedWeightsTest.together(
            2,
            all -> {
              try (var model = model(dtype, all)) {
                var result = model.gradients(recompute);
                all.barrier(); // others read this one's weights
                return result;
              }
            });
    found.forEach(each -> assertThat(distance(each, expected)).isLessThan(tolerance));
  }

  @ParameterizedTest
  @CsvSource({"BF16, 1e-2", "F32, 1e-5"})
  void forwardPasses(Dtype dtype, double tolerance) throws Exception {
    float[] expected;
    try (var whole = model(dtype, Collective.single())) {
      expected = whole.logits();
    }
    var found =
        ShardedWeightsTest.together(
            3,
            all -> {
              try (var model = model(dtype, all)) {
                var result = model.logits();
                all.barrier(); // others read this one's weights
                return result;
              }
            });
    found.forEach(each -> assertThat(distance(each, expected)).isLessThan(tolerance));
  }
}
