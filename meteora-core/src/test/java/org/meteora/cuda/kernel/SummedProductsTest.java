package org.meteora.cuda.kernel;

import static org.assertj.core.api.Assertions.assertThat;

import org.junit.jupiter.api.Test;
import org.meteora.cuda.kernel.SummedProducts.Tiles;

class SummedProductsTest {
  @Test
  void theLastRoundIsSplitWhereThatIsQuicker() {
    assertThat(new Tiles(512, 462, 66).split()).isEqualTo(50); // 7.76 rounds
    assertThat(new Tiles(512, 68, 66).split()).isZero(); // which are short
    assertThat(new Tiles(30, 68, 66).split()).isEqualTo(30); // not even one
    assertThat(new Tiles(128, 68, 66).split()).isZero(); // 1.94: little is idle
    assertThat(new Tiles(67, 68, 66).split()).isZero(); // a chunk for each
    assertThat(new Tiles(40, 10, 66).split()).isZero(); // soon done as it is
    assertThat(new Tiles(132, 400, 66).split()).isZero(); // nothing is idle
  }

  @Test
  void itTakesNoLongerThanWholeRoundsAndNoLessThanTheWork() {
    for (int count = 1; count < 200; count++) {
      for (int chunks = 1; chunks < 500; chunks += 7) {
        double micros = new Tiles(count, chunks, 66).micros();
        assertThat(micros).isLessThanOrEqualTo(0.8 * chunks * Math.ceilDiv(count, 66));
        assertThat(micros).isGreaterThan(0.8 * chunks * count / 66 - 1e-6);
      }
    }
  }
}
