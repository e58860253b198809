package org.meteora.tensor;

import static org.assertj.core.api.Assertions.assertThat;

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
}
