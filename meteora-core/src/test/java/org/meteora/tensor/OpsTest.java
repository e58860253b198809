package org.meteora.tensor;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import ai.djl.pytorch.engine.PtNDArray;
import java.util.List;
import org.junit.jupiter.api.Test;

class OpsTest {
  @Test
  void castsThroughBfloat16() {
    try (var manager = Devices.newManager(ai.djl.Device.cpu())) {
      var x = manager.create(new float[] {1, 1.00390625f, -3});
      var half = Ops.cast(x, Dtype.BF16);
      assertThat(Ops.dtype(half)).isEqualTo(Dtype.BF16);
      assertThat(Ops.cast(half, Dtype.F32).toFloatArray()).containsExactly(1, 1, -3);
    }
  }

  @Test
  void takesNumbersOfJavaArrays() {
    try (var manager = Devices.newManager(ai.djl.Device.cpu())) {
      var integers = Ops.of(manager, new long[] {1, -2, 1L << 40, 4, 5, 6}, 2, 3);
      assertThat(integers.getShape()).isEqualTo(Ops.shape(2, 3));
      assertThat(integers.toLongArray()).containsExactly(1, -2, 1L << 40, 4, 5, 6);
      assertThat(Ops.of(manager, new float[] {0.5f}).getShape()).isEqualTo(Ops.shape());
      assertThat(Ops.of(manager, new float[0], 0, 3).size()).isZero();
      assertThatThrownBy(() -> Ops.of(manager, new float[] {1, 2, 3}, 2, 2))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining("3 values for [2, 2]");
    }
  }

  /** What DJL keeps of it, several threads could not ask for at once. */
  @Test
  void memoryIsFoundWithoutTheShapeThatDjlKeeps() throws ReflectiveOperationException {
    var kept = PtNDArray.class.getDeclaredField("shape");
    kept.setAccessible(true);
    try (var manager = Devices.newManager(ai.djl.Device.cpu())) {
      for (var shape : List.of(Ops.shape(3, 5), Ops.shape(), Ops.shape(0, 4))) {
        var fresh = Ops.empty(manager, Dtype.F32, shape.getShape());
        assertThat(Ops.memory(fresh).byteSize()).isEqualTo(4 * shape.size());
        assertThat(kept.get(fresh)).isNull();
      }
    }
  }

  @Test
  void gathersScattersAndSelects() {
    try (var manager = Devices.newManager(ai.djl.Device.cpu())) {
      var x = manager.create(new float[] {1, 5, 3, 4, 2, 6}, Ops.shape(2, 3));
      var top = Ops.topK(x, 2);
      assertThat(top[0].toFloatArray()).containsExactly(5, 3, 6, 4);
      assertThat(top[1].toLongArray()).containsExactly(1, 2, 2, 0);
      var zeros = Ops.zeros(manager, Dtype.F32, 2, 3);
      assertThat(Ops.scatterAdd(zeros, 1, top[1], top[0]).toFloatArray())
          .containsExactly(0, 5, 3, 4, 0, 6);
      assertThat(Ops.indexSelect(x, 0, manager.create(new long[] {1, 0})).toFloatArray())
          .containsExactly(4, 2, 6, 1, 5, 3);
    }
  }

  @Test
  void gradientsFlowThroughTheDispatcher() {
    try (var manager = Devices.newManager(ai.djl.Device.cpu());
        var recording = Ops.recording()) {
      var x = manager.create(new float[] {1, 2, 3, 4}, Ops.shape(2, 2));
      var w = manager.create(new float[] {1, 0, 2, 1}, Ops.shape(2, 2));
      w.setRequiresGradient(true);
      var y = Ops.silu(Ops.linear(x, w, null)).sum();
      Ops.backward(y, null);
      assertThat(w.getGradient().toFloatArray()).hasSize(4).doesNotContain(0f);
    }
  }

  /** The reason is in the exception; before, it was on standard error, with libtorch's stack. */
  @Test
  void saysWhyAnOperationFailed() {
    try (var manager = Devices.newManager(ai.djl.Device.cpu())) {
      var a = Ops.zeros(manager, Dtype.F32, 2, 3);
      var b = Ops.zeros(manager, Dtype.F32, 4, 5);
      for (int i = 0; i < 2; i++) {
        org.assertj.core.api.Assertions.assertThatThrownBy(() -> Ops.linear(a, b, null))
            .hasMessageContaining("libtorch failed in aten::linear: ")
            .hasMessageContaining("shapes cannot be multiplied (2x3 and 5x4)")
            .hasMessageNotContaining("frame #")
            .message()
            .doesNotContain("\n");
      }
      org.assertj.core.api.Assertions.assertThatThrownBy(
              () -> Ops.empty(manager, Dtype.F32, 1L << 50))
          .hasMessageContaining("memory");
    }
  }

  /** Four query heads on two of keys and values, against the formula; 1e-5 of values near 1. */
  @Test
  void headsOfAGroupShareKeysAndValues() {
    int heads = 4;
    int queries = 3;
    int dim = 2;
    var random = new java.util.Random(5);
    try (var manager = Devices.newManager(ai.djl.Device.cpu());
        var recording = Ops.recording()) {
      var q = gaussian(random, heads * queries * dim);
      var k = gaussian(random, heads / 2 * queries * dim);
      var v = gaussian(random, heads / 2 * queries * dim);
      var keys = manager.create(k, Ops.shape(1, heads / 2, queries, dim));
      var values = manager.create(v, Ops.shape(1, heads / 2, queries, dim));
      values.setRequiresGradient(true);
      var out =
          Ops.attention(
              manager.create(q, Ops.shape(1, heads, queries, dim)), keys, values, null, true);
      var expected = new float[q.length];
      var slope = new float[v.length]; // of the sum of all results
      for (int row = 0; row < heads * queries; row++) {
        int group = row / queries / 2 * queries;
        var weights = new double[row % queries + 1];
        double all = 0;
        for (int j = 0; j < weights.length; j++) {
          double score = 0;
          for (int d = 0; d < dim; d++) {
            score += q[row * dim + d] * k[(group + j) * dim + d];
          }
          weights[j] = Math.exp(score / Math.sqrt(dim));
          all += weights[j];
        }
        for (int j = 0; j < weights.length; j++) {
          for (int d = 0; d < dim; d++) {
            expected[row * dim + d] += (float) (weights[j] / all * v[(group + j) * dim + d]);
            slope[(group + j) * dim + d] += (float) (weights[j] / all);
          }
        }
      }
      assertThat(out.toFloatArray()).containsExactly(expected, within(1e-5f));
      Ops.backward(out.sum(), null);
      assertThat(values.getGradient().toFloatArray()).containsExactly(slope, within(1e-5f));
    }
  }

  private static float[] gaussian(java.util.Random random, int size) {
    var values = new float[size];
    for (int i = 0; i < size; i++) {
      values[i] = (float) random.nextGaussian();
    }
    return values;
  }
}
