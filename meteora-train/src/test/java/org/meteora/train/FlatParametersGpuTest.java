package org.meteora.train;

import static org.assertj.core.api.Assertions.assertThat;

import ai.djl.Device;
import ai.djl.ndarray.NDArray;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;
import org.meteora.train.optim.FlatParameters;

/** Master values of several processes on a GPU, each of which steps a slice. */
@Tag("gpu")
class FlatParametersGpuTest {
  private static final long[][] SHAPES = {{4, 6}, {5}, {8, 3}};

  @ParameterizedTest
  @CsvSource({"BF16, 3", "F16, 2", "F32, 3"})
  void whatIsPublishedIsEverybodysSliceRounded(Dtype dtype, int processes) throws Exception {
    record Found(List<float[]> tensors, float[] values, float[] expected) {}
    var found =
        ShardedWeightsTest.together(
            processes,
            all -> {
              try (var manager = Devices.newManager(Device.gpu(0))) {
                var tensors = new LinkedHashMap<String, NDArray>();
                for (var shape : SHAPES) {
                  tensors.put("p" + tensors.size(), Ops.zeros(manager, dtype, shape));
                }
                try (var parameters = new FlatParameters(manager, tensors, all)) {
                  long slice = parameters.masters().getShape().size();
                  var expected = new float[(int) slice * processes];
                  for (int i = 0; i < expected.length; i++) {
                    expected[i] = (float) Math.sin(1 + i); // not of the model's dtype
                  }
                  int from = (int) (all.rank() * slice);
                  var own = manager.create(Arrays.copyOfRange(expected, from, from + (int) slice));
                  Ops.copy(parameters.masters(), own);
                  parameters.publish();
                  var rounded =
                      tensors.values().stream()
                          .map(each -> Ops.cast(each, Dtype.F32).toFloatArray())
                          .toList();
                  parameters.publishWhole();
                  var values = parameters.values().toFloatArray();
                  return new Found(rounded, values, expected);
                }
              }
            });
    for (var each : found) {
      int at = 0;
      for (var tensor : each.tensors()) {
        for (float value : tensor) {
          assertThat(value).isEqualTo(rounded(dtype, each.expected()[at]));
          assertThat(each.values()[at]).isEqualTo(each.expected()[at]);
          at++;
        }
      }
      assertThat(at).isEqualTo(4 * 6 + 5 + 8 * 3);
    }
  }

  private static float rounded(Dtype dtype, float value) {
    return switch (dtype) {
      case F32 -> value;
      case F16 -> Float.float16ToFloat(Float.floatToFloat16(value));
      case BF16 -> {
        int bits = Float.floatToIntBits(value);
        yield Float.intBitsToFloat((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000);
      }
      default -> throw new IllegalArgumentException(dtype.toString());
    };
  }
}
