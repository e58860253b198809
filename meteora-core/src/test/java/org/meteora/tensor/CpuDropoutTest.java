package org.meteora.tensor;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import ai.djl.Device;
import ai.djl.ndarray.NDArray;
import ai.djl.pytorch.engine.PtNDArray;
import ai.djl.pytorch.jni.JniUtils;
import java.lang.foreign.Arena;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import org.junit.jupiter.api.Test;

class CpuDropoutTest {
  private static final int COUNT = 1 << 18;

  /** Places {@code first} … of a constant, in rows of {@code width}. */
  private static float[] drop(double p, long seed, int first, int count, int width) {
    var dropout = new CpuDropout(p, seed);
    try (var arena = Arena.ofConfined()) {
      var values = new float[first + count];
      Arrays.fill(values, -1.5f);
      var memory = arena.allocateFrom(ValueLayout.JAVA_FLOAT, values);
      for (int at = 0; at < count; at += width) {
        dropout.copy(memory, memory, (long) first + at, Math.min(width, count - at));
      }
      return memory.asSlice(4L * first).toArray(ValueLayout.JAVA_FLOAT);
    }
  }

  private static double share(float[] a, float[] b, int shift) {
    int both = 0;
    for (int i = 0; i + shift < a.length; i++) {
      both += a[i] == 0 && b[i + shift] == 0 ? 1 : 0;
    }
    return (double) both / (a.length - shift);
  }

  /** Standard errors: 0.0006 for p, below 0.0005 for the joint shares; five of them are allowed. */
  @Test
  void dropsTheShareAskedForEverywhereAlike() {
    for (double p : new double[] {0.1, 0.5}) {
      var one = drop(p, 42L << 32 | 7, 0, COUNT, 3000);
      var other = drop(p, 42L << 32 | 8, 0, COUNT, 3000);
      var third = drop(p, 43L << 32 | 7, 0, COUNT, 3000);
      assertThat(share(one, one, 0)).isCloseTo(p, within(5 * Math.sqrt(p * (1 - p) / COUNT)));
      double error = 5 * Math.sqrt(p * p / COUNT);
      for (int shift : new int[] {1, 2, 768, 1024, 2048}) {
        assertThat(share(one, one, shift)).isCloseTo(p * p, within(error));
      }
      for (int shift : new int[] {0, 1, 2}) {
        assertThat(share(one, other, shift)).isCloseTo(p * p, within(error));
        assertThat(share(one, third, shift)).isCloseTo(p * p, within(error));
      }
      for (float value : one) {
        assertThat(value == 0 || value == -1.5f).isTrue();
      }
    }
  }

  @Test
  void aPlaceIsDroppedHoweverItIsReached() {
    var whole = drop(0.3, 99, 0, 5000, 5000);
    assertThat(drop(0.3, 99, 0, 5000, 100)).isEqualTo(whole);
    assertThat(drop(0.3, 99, 1234, 2000, 777)).isEqualTo(Arrays.copyOfRange(whole, 1234, 3234));
    assertThat(drop(0, 99, 0, 10, 10)).containsOnly(-1.5f);
    assertThat(new CpuDropout(0.2, 1).scale()).isCloseTo(1.25, within(1e-12));
  }

  /** The same places as a copy drops, each gradient as its number; a seed says which. */
  @Test
  void ofATensorItDropsNumbersAndTheirGradientsAlike() {
    try (var manager = Devices.newManager(Device.cpu())) {
      JniUtils.setSeed(5);
      var x = manager.ones(Ops.shape(3, 1000));
      x.setRequiresGradient(true);
      NDArray y;
      try (var on = Ops.recording()) {
        y = Ops.dropout(x, 0.25);
        Ops.backward(y.sum(), null);
      }
      var values = y.toFloatArray();
      int dropped = 0;
      for (float value : values) {
        assertThat(value == 0 || value == (float) (1 / 0.75)).isTrue();
        dropped += value == 0 ? 1 : 0;
      }
      assertThat(dropped / 3000.0).isCloseTo(0.25, within(5 * Math.sqrt(0.25 * 0.75 / 3000)));
      assertThat(JniUtils.getGradient((PtNDArray) x).toFloatArray()).isEqualTo(values);
      assertThat(Ops.dropout(x, 0.25).toFloatArray()).isNotEqualTo(values);
      JniUtils.setSeed(5);
      assertThat(Ops.dropout(x, 0.25).toFloatArray()).isEqualTo(values);
    }
  }
}
