package org.meteora.backend.cpu;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import ai.djl.Device;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.List;
import java.util.Optional;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.meteora.model.Pass;
import org.meteora.model.RmsNorm;
import org.meteora.model.RotaryEmbedding;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.RoutingSettings;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/** Against the tensor operations that training records; few rows and many, of odd widths too. */
class CpuLayerOpsTest {
  private final Random random = new Random(5);

  private NDArray gaussian(NDManager manager, long... shape) {
    var values = new float[(int) Ops.shape(shape).size()];
    for (int i = 0; i < values.length; i++) {
      values[i] = (float) random.nextGaussian();
    }
    return manager.create(values, Ops.shape(shape));
  }

  private static void assertClose(NDArray actual, NDArray expected) {
    assertThat(actual.getShape()).isEqualTo(expected.getShape());
    assertThat(actual.toFloatArray()).containsExactly(expected.toFloatArray(), within(1e-5f));
  }

  @Test
  void normAgreesWithTensorOperations() {
    try (var manager = Devices.newManager(Device.cpu())) {
      for (int[] shape : new int[][] {{1, 1, 7}, {3, 1, 64}, {2, 90, 301}}) {
        var x = gaussian(manager, shape[0], shape[1], shape[2]);
        var norm = new RmsNorm(gaussian(manager, shape[2]), 1e-5);
        assertClose(new CpuLayerOps(false).norm(x, norm), norm.forward(x));
        var turned = Ops.transpose(x, 0, 1); // not row-major
        assertClose(new CpuLayerOps(false).norm(turned, norm), norm.forward(turned));
      }
    }
  }

  @Test
  void aPassOnATapeIsNormedAndRotatedByIt() {
    var backend = new CpuBackend(Dtype.F32, false);
    var context = ForwardContext.inference(new RoutingSettings(2, 1), Flags.AUTO).forTraining(true);
    try (var manager = Devices.newManager(Device.cpu())) {
      var pass =
          new Pass(null, null, true, null, null, null, null, backend.ops(), context, List.of());
      assertThat(pass.on(Optional.empty(), backend).ops()).isSameAs(backend.ops());
      assertThat(pass.on(Optional.of(new CpuTape(manager)), backend).ops())
          .isInstanceOf(CpuTapeOps.class);
    }
  }

  @Test
  void rotationAgreesWithTensorOperations() {
    int dim = 12;
    try (var manager = Devices.newManager(Device.cpu())) {
      for (int rowsOfAngles : new int[] {1, 3}) {
        for (int seq : new int[] {1, 200}) {
          var angles =
              new RotaryEmbedding.Angles(
                  gaussian(manager, rowsOfAngles, seq, 1, dim),
                  gaussian(manager, rowsOfAngles, seq, 1, dim));
          var x = gaussian(manager, 3, seq, 5 * dim);
          var expected = RotaryEmbedding.rotate(x.reshape(3, seq, 5, dim), angles);
          CpuLayerOps.rotate(x, angles);
          assertClose(x.reshape(3, seq, 5, dim), expected);
        }
      }
    }
  }

  @Test
  void gradientsOfNormAndRotationAgreeWithTensorOperations() {
    int dim = 12;
    int seq = 90;
    try (var manager = Devices.newManager(Device.cpu());
        var recording = Ops.recording()) {
      var upstream = gaussian(manager, 2, seq, 5 * dim);
      var x = gaussian(manager, 2, seq, 5 * dim);
      x.setRequiresGradient(true);
      var norm = new RmsNorm(gaussian(manager, 5 * dim), 1e-5);
      Ops.backward(norm.forward(x), upstream);
      var expected = x.getGradient();
      try (var off = Ops.notRecording()) {
        var gradient = upstream.duplicate();
        var scales = new float[2 * seq];
        CpuLayerOps.norm(x, norm, scales);
        CpuLayerOps.normBackward(x, norm, scales, gradient);
        assertClose(gradient, expected);
      }
      var angles =
          new RotaryEmbedding.Angles(
              gaussian(manager, 1, seq, 1, dim), gaussian(manager, 1, seq, 1, dim));
      var y = gaussian(manager, 2, seq, 5 * dim);
      y.setRequiresGradient(true);
      var heads = y.reshape(2, seq, 5, dim);
      Ops.backward(RotaryEmbedding.rotate(heads, angles), upstream.reshape(2, seq, 5, dim));
      try (var off = Ops.notRecording()) {
        CpuLayerOps.rotateBackward(upstream, angles);
        assertClose(upstream, y.getGradient());
      }
    }
  }
}
