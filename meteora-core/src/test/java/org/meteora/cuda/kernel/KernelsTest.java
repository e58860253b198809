package org.meteora.cuda.kernel;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.Test;
import org.meteora.UserException;
import org.meteora.cuda.driver.Nvrtc;
import org.meteora.tensor.Dtype;

class KernelsTest {
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
