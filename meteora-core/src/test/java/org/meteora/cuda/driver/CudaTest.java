package org.meteora.cuda.driver;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.foreign.Arena;
import java.lang.foreign.ValueLayout;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.Test;
import org.meteora.UserException;

class CudaTest {
  @Test
  void withoutDriverOneLineSaysSo() {
    Assumptions.assumeFalse(Cuda.isAvailable(), "there is a CUDA GPU here");
    assertThatThrownBy(() -> Cuda.device(0))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("--device cpu")
        .hasMessageNotContaining("\n");
    assertThatThrownBy(() -> Cuda.device(0))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("--device cpu");
  }

  @Test
  void structsAreLaidOutAsInC() {
    try (var arena = Arena.ofConfined()) {
      var segment =
          new Struct().add(1).add(2L).add(3f).add(new Struct().add(true)).add(5).copyTo(arena);
      assertThat(segment.get(ValueLayout.JAVA_INT, 0)).isEqualTo(1);
      assertThat(segment.get(ValueLayout.JAVA_LONG, 8)).isEqualTo(2);
      assertThat(segment.get(ValueLayout.JAVA_FLOAT, 16)).isEqualTo(3f);
      assertThat(segment.get(ValueLayout.JAVA_INT, 24)).isEqualTo(1);
      assertThat(segment.get(ValueLayout.JAVA_INT, 32)).isEqualTo(5);
    }
  }
}
