package org.meteora.cuda.driver;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.foreign.Arena;
import java.lang.foreign.ValueLayout;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.meteora.cuda.driver.CStruct.Align;
import org.meteora.cuda.driver.CStruct.Count;

class CStructTest {
  record Inner(boolean is, long number) {}

  record Outer(
      int a, long b, float c, @Count(2) List<Inner> inner, @Count(3) long[] array, int last) {}

  @Align(64)
  record Aligned(int a) {}

  record Around(int a, Aligned b) {}

  @Test
  void fieldsLieWhereCPutsThem() {
    var struct = CStruct.of(Outer.class);
    assertThat(struct.fields().stream().map(CStruct.Field::offset).toList())
        .containsExactly(0, 8, 16, 24, 56, 80);
    assertThat(struct.size()).isEqualTo(88);
    assertThat(struct.alignment()).isEqualTo(8);
    assertThat(struct.offset("array")).isEqualTo(56);
    assertThat(CStruct.of(Around.class).offset("b")).isEqualTo(64);
    assertThat(CStruct.of(Around.class).size()).isEqualTo(128);
  }

  @Test
  void valuesAreWrittenAndShortArraysFilledWithZeros() {
    try (var arena = Arena.ofConfined()) {
      var memory = arena.allocate(88, 8);
      var value = new Outer(1, 2, 3f, List.of(new Inner(true, 4)), new long[] {5, 6}, 7);
      CStruct.of(Outer.class).write(value, memory, 0);
      assertThat(memory.get(ValueLayout.JAVA_INT, 0)).isEqualTo(1);
      assertThat(memory.get(ValueLayout.JAVA_LONG, 8)).isEqualTo(2);
      assertThat(memory.get(ValueLayout.JAVA_FLOAT, 16)).isEqualTo(3f);
      assertThat(memory.get(ValueLayout.JAVA_INT, 24)).isEqualTo(1);
      assertThat(memory.get(ValueLayout.JAVA_LONG, 32)).isEqualTo(4);
      assertThat(memory.get(ValueLayout.JAVA_LONG, 48)).isZero();
      assertThat(memory.get(ValueLayout.JAVA_LONG, 64)).isEqualTo(6);
      assertThat(memory.get(ValueLayout.JAVA_LONG, 72)).isZero();
      assertThat(memory.get(ValueLayout.JAVA_INT, 80)).isEqualTo(7);
    }
  }

  @Test
  void aLongerArrayIsRefused() {
    try (var arena = Arena.ofConfined()) {
      var memory = arena.allocate(88, 8);
      var value = new Outer(1, 2, 3f, List.of(), new long[4], 7);
      assertThatThrownBy(() -> CStruct.of(Outer.class).write(value, memory, 0))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining("array");
    }
  }
}
