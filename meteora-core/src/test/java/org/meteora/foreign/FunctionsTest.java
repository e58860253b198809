package org.meteora.foreign;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.util.NoSuchElementException;
import org.junit.jupiter.api.Test;

class FunctionsTest {
  @Test
  void aSignatureSaysWhatIsPassed() throws Throwable {
    try (var arena = Arena.ofConfined()) {
      var text = arena.allocateFrom("meteora");
      assertThat((long) Functions.bind("strlen", "(A)J").invokeExact(text)).isEqualTo(7);
      assertThat((long) Functions.bind("strlen", "(J)J").invokeExact(text.address())).isEqualTo(7);
      assertThat((int) Functions.bind("abs", "(I)I").invokeExact(-3)).isEqualTo(3);
      assertThat((double) Functions.bind("ldexp", "(DI)D").invokeExact(0.75, 3)).isEqualTo(6);
    }
    var descriptor = Functions.descriptor("(BF)V");
    assertThat(descriptor.returnLayout()).isEmpty();
    assertThat(descriptor.toMethodType().parameterList()).containsExactly(byte.class, float.class);
    assertThatThrownBy(() -> Functions.descriptor("(JX)V"))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessage("no type is called X");
    assertThatThrownBy(() -> Functions.bind("there_is_no_such_function", "()V"))
        .isInstanceOf(NoSuchElementException.class);
  }

  @Test
  void whatACallThrewIsThrownOn() {
    var unchecked = new IllegalArgumentException("a");
    var error = new AssertionError("b");
    var checked = new IOException("c");
    assertThat(Functions.unchecked(unchecked)).isSameAs(unchecked);
    assertThatThrownBy(() -> Functions.unchecked(error)).isSameAs(error);
    assertThat(Functions.unchecked(checked)).isInstanceOf(IllegalStateException.class);
    assertThat(Functions.unchecked(checked)).hasCause(checked);
  }
}
