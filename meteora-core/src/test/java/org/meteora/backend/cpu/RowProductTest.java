package org.meteora.backend.cpu;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import ai.djl.Device;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Random;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.meteora.tensor.Devices;

/** Products by pieces, with as many rows at once as there are or always 16, beside float64. */
class RowProductTest {
  private final Random random = new Random(1);

  @BeforeAll
  static void load() {
    Devices.newManager(Device.cpu()).close(); // libtorch, whose BLAS this is
  }

  private MemorySegment numbers(Arena arena, int count) {
    var numbers = arena.allocate(4L * count, 64);
    for (int i = 0; i < count; i++) {
      numbers.setAtIndex(JAVA_FLOAT, i, random.nextFloat() - 0.5f);
    }
    return numbers;
  }

  @ParameterizedTest
  @CsvSource({"1, 5", "3, 64", "15, 300", "16, 63", "17, 128", "40, 255", "33, 256", "48, 7"})
  void areThoseOfTheFormula(int rows, int out) {
    int in = 36;
    try (var arena = Arena.ofShared()) {
      var x = numbers(arena, rows * in);
      var weight = numbers(arena, out * in);
      var expected = new double[rows * out];
      for (int i = 0; i < expected.length; i++) {
        for (int k = 0; k < in; k++) {
          expected[i] +=
              (double) x.getAtIndex(JAVA_FLOAT, i / out * in + k)
                  * weight.getAtIndex(JAVA_FLOAT, i % out * in + k);
        }
      }
      for (int mostRows : new int[] {RowProduct.ROWS, Integer.MAX_VALUE}) {
        var y = arena.allocate(4L * rows * out, 64);
        new RowProduct(mostRows).run(rows, out, in, x, weight, y);
        for (int i = 0; i < expected.length; i++) {
          assertThat(y.getAtIndex(JAVA_FLOAT, i)).isCloseTo((float) expected[i], within(1e-5f));
        }
      }
    }
  }
}
