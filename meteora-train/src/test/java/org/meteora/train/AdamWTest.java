package org.meteora.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import ai.djl.Device;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.LinkedHashMap;
import java.util.Random;
import java.util.stream.IntStream;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;
import org.meteora.train.optim.AdamW;
import org.meteora.train.optim.FlatParameters;

/** The flat buffers and the optimiser against the formula in float64, one number at a time. */
class AdamWTest {
  /** Two parameters: more numbers than a thread takes at once, and no multiple of anything. */
  private static final int[][] SHAPES = {{523, 611}, {7, 13}};

  private final Random random = new Random(3);

  private float[] gaussian(int size, double scale) {
    var values = new float[size];
    for (int i = 0; i < size; i++) {
      values[i] = (float) (random.nextGaussian() * scale);
    }
    return values;
  }

  /** In float32 the tensors become views of the buffers, in bfloat16 they are copies. */
  @ParameterizedTest
  @EnumSource(
      value = Dtype.class,
      names = {"F32", "BF16"})
  void followsTheFormula(Dtype dtype) {
    try (var manager = Devices.newManager(Device.cpu())) {
      var tensors = new LinkedHashMap<String, NDArray>();
      var start = gaussian(SHAPES[0][0] * SHAPES[0][1] + SHAPES[1][0] * SHAPES[1][1], 1);
      int offset = 0;
      for (var shape : SHAPES) {
        int size = shape[0] * shape[1];
        var part = java.util.Arrays.copyOfRange(start, offset, offset + size);
        var values = manager.create(part, Ops.shape(shape[0], shape[1]));
        tensors.put("p" + offset, Ops.convert(values, dtype));
        offset += size;
      }
      try (var parameters = new FlatParameters(manager, tensors);
          var optimizer = new AdamW(parameters, 0.1)) {
        var p = doubles(parameters.values().toFloatArray());
        var m = new double[p.length];
        var v = new double[p.length];
        for (int step = 1; step <= 3; step++) {
          double rate = 0.01 * step;
          var g = new double[p.length];
          parameters.clearGradients();
          for (int pass = 0; pass < 2; pass++) { // gradients of several passes add up
            backward(manager, tensors, g);
            parameters.collectGradients();
          }
          double squares = 0;
          for (int i = 0; i < p.length; i++) {
            squares += g[i] * g[i];
          }
          assertThat(optimizer.gradientNorm()).isCloseTo(Math.sqrt(squares), within(1e-3));
          double clip = AdamW.clipFactor(optimizer.gradientNorm(), 300);
          assertThat(clip).isBetween(0.1, 0.9);
          optimizer.step(rate, clip);
          parameters.publish();
          for (int i = 0; i < p.length; i++) {
            double scaled = clip * g[i];
            m[i] = 0.9 * m[i] + 0.1 * scaled;
            v[i] = 0.999 * v[i] + 0.001 * scaled * scaled;
            double denominator = Math.sqrt(v[i]) / Math.sqrt(1 - Math.pow(0.999, step)) + 1e-8;
            p[i] = p[i] * (1 - rate * 0.1) - rate / (1 - Math.pow(0.9, step)) * m[i] / denominator;
          }
          assertThat(farthest(parameters.values().toFloatArray(), p)).isLessThan(1e-5);
          assertThat(farthest(flat(tensors), p)).isLessThan(dtype == Dtype.F32 ? 1e-5 : 0.02);
        }
      }
    }
  }

  /** Gives each tensor a random gradient by a backward pass, and adds it to {@code sums}. */
  private void backward(NDManager manager, LinkedHashMap<String, NDArray> tensors, double[] sums) {
    int offset = 0;
    for (var tensor : tensors.values()) {
      try (var scope = manager.newSubManager();
          var on = Ops.recording()) {
        var values = scope.create(gaussian((int) tensor.size(), 1), tensor.getShape());
        var gradient = Ops.convert(values, Ops.dtype(tensor));
        Ops.backward(Ops.alias(scope, tensor), gradient);
        for (float value : Ops.cast(gradient, Dtype.F32).toFloatArray()) {
          sums[offset++] += value;
        }
      }
    }
  }

  private static double[] doubles(float[] values) {
    return IntStream.range(0, values.length).mapToDouble(i -> values[i]).toArray();
  }

  private static float[] flat(LinkedHashMap<String, NDArray> tensors) {
    var result = new float[tensors.values().stream().mapToInt(t -> (int) t.size()).sum()];
    int offset = 0;
    for (var tensor : tensors.values()) {
      var values = Ops.convert(tensor, Dtype.F32).toFloatArray();
      System.arraycopy(values, 0, result, offset, values.length);
      offset += values.length;
    }
    return result;
  }

  private static double farthest(float[] values, double[] expected) {
    return IntStream.range(0, values.length)
        .mapToDouble(i -> Math.abs(values[i] - expected[i]))
        .max()
        .orElseThrow();
  }
}
