package org.meteora.cuda.driver;

import static org.assertj.core.api.Assertions.assertThatThrownBy;

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
}
