package org.meteora.data.source;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.Arrays;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;

/** Against numpy's and Python's own output. */
class MersenneTwisterTest {
  private static long[] words(MersenneTwister twister) {
    return Stream.generate(() -> Integer.toUnsignedLong(twister.word()))
        .limit(5)
        .mapToLong(Long::longValue)
        .toArray();
  }

  private static int[] numbers(String text) {
    return Arrays.stream(text.split(", ")).mapToInt(Integer::parseInt).toArray();
  }

  @Test
  void words() {
    assertThat(words(MersenneTwister.ofWord(42)))
        .containsExactly(1608637542, 3421126067L, 4083286876L, 787846414, 3143890026L);
    assertThat(words(MersenneTwister.ofArray(42)))
        .containsExactly(2746317213L, 478163327, 107420369, 3184935163L, 1181241943);
  }

  @Test
  void choicesAreNumpysPermutation() {
    assertThat(MersenneTwister.choices(0)).isEmpty();
    assertThat(MersenneTwister.choices(1)).containsExactly(0);
    assertThat(MersenneTwister.choices(2)).containsExactly(1, 0);
    assertThat(MersenneTwister.choices(3)).containsExactly(0, 1, 2);
    assertThat(MersenneTwister.choices(4)).containsExactly(1, 3, 0, 2);
    assertThat(MersenneTwister.choices(12)).containsExactly(10, 9, 0, 8, 5, 2, 1, 11, 4, 7, 3, 6);
    assertThat(MersenneTwister.choices(100))
        .startsWith(numbers("83, 53, 70, 45, 44, 39, 22, 80, 10, 0, 18, 30, 73, 33, 90, 4, 76"))
        .endsWith(numbers("29, 1, 52, 21, 2, 23, 87, 91, 74, 86, 82, 20, 60, 71, 14, 92, 51"))
        .containsOnly(IntStream.range(0, 100).toArray());
  }

  @Test
  void examplesArePythonsShuffle() {
    assertThat(MersenneTwister.examples(0)).isEmpty();
    assertThat(MersenneTwister.examples(2)).containsExactly(1, 0);
    assertThat(MersenneTwister.examples(4)).containsExactly(2, 1, 3, 0);
    assertThat(MersenneTwister.examples(10)).containsExactly(7, 3, 2, 8, 5, 6, 9, 4, 0, 1);
    assertThat(MersenneTwister.examples(17))
        .startsWith(7, 10, 5, 6, 15, 14, 13, 9, 8, 1)
        .endsWith(16, 4, 11, 0, 3);
    assertThat(MersenneTwister.examples(1000))
        .startsWith(776, 507, 895, 922, 33, 483, 85, 750, 354, 523)
        .endsWith(281, 759, 25, 114, 654);
    assertThat(MersenneTwister.examples(54668))
        .startsWith(23844, 4977, 27960, 29005, 37522, 9851, 10301, 40301, 2760, 49238)
        .endsWith(18024, 48598, 1639, 7296, 41905);
  }
}
