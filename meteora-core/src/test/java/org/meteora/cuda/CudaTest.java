package org.meteora.cuda;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.foreign.Arena;
import java.lang.foreign.ValueLayout;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.Test;
import org.meteora.UserException;
import org.meteora.tensor.Dtype;

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

  /** Where there is the compiler, which needs no GPU. */
  @Test
  void kernelsCompiledAheadAreThose() {
    try {
      Nvrtc.get();
    } catch (UserException e) {
      Assumptions.abort(e.getMessage());
    }
    var constants = Kernels.Constants.ofLayers(Dtype.F32, 3, 5);
    Kernels.prepare(90, constants);
    var ahead = Kernels.code(90, constants);
    assertThat(ahead).isEqualTo(Kernels.code(90, constants)).isNotEmpty();
    Kernels.prepare(1, constants); // fails behind the scenes; whoever needs it hears why
    assertThatThrownBy(() -> Kernels.code(1, constants))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("0.1");
  }

  @Test
  void limitsAreNamed() {
    assertThatThrownBy(() -> new Kernels.Constants(Dtype.BF16, 9, 28, 128, 4))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("9");
    assertThatThrownBy(() -> new Kernels.Constants(Dtype.BF16, 2, 257, 128, 4))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("257");
    assertThat(new Kernels.Constants(Dtype.BF16, 2, 28, 128, 4).maxAdapters()).isEqualTo(32);
  }
}
