package org.meteora.cuda.driver;

import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.invoke.MethodType;
import org.junit.jupiter.api.Test;
import org.meteora.UserException;

class CudaDriverTest {
  @Test
  void whatAnOldDriverLacksFailsWhenItIsCalled() {
    var type = MethodType.methodType(int.class, long.class, int.class);
    var missing = CudaDriver.Missing.function("cuLaunchKernelEx", type);
    assertThatThrownBy(
            () -> {
              int code = (int) missing.invokeExact(1L, 2);
            })
        .isInstanceOf(UserException.class)
        .hasMessageContaining("too old")
        .hasMessageContaining("cuLaunchKernelEx");
  }
}
