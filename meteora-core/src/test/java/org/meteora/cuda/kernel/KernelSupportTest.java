package org.meteora.cuda.kernel;

import static org.assertj.core.api.Assertions.assertThat;

import org.junit.jupiter.api.Test;
import org.meteora.UserException;

class KernelSupportTest {
  @Test
  void withoutACompilerItSaysSo() {
    var refusal =
        KernelSupport.refusal(
            () -> {
              throw new AssertionError("the GPU is not asked");
            },
            () -> {
              throw new UserException("no CUDA compiler: libnvrtc.so is nowhere");
            });
    assertThat(refusal).contains("no CUDA compiler: libnvrtc.so is nowhere");
  }
}
