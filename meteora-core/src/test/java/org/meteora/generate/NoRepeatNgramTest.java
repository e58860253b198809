package org.meteora.generate;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.TreeSet;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Beside a search through all that was said. */
class NoRepeatNgramTest {
  @ParameterizedTest
  @ValueSource(ints = {1, 2, 3, 5, 30})
  void bansWhatFollowedTheSameTokens(int size) {
    var random = new Random(size);
    for (int vocabulary : new int[] {1, 2, 4, 50_000}) {
      var ngrams = new NoRepeatNgram(size);
      List<Integer> said = new ArrayList<>();
      for (int step = 0; step < 300; step++) {
        assertThat(ngrams.banned()).containsExactlyInAnyOrder(searched(said, size));
        boolean again = said.size() > 60 && random.nextInt(4) > 0; // long repetitions
        int token = again ? said.get(said.size() - 37) : random.nextInt(vocabulary);
        ngrams.add(token);
        said.add(token);
      }
    }
  }

  private static int[] searched(List<Integer> said, int size) {
    var banned = new TreeSet<Integer>();
    int from = said.size() - size + 1;
    for (int at = size - 1; from >= 0 && at < said.size(); at++) {
      if (said.subList(at - size + 1, at).equals(said.subList(from, said.size()))) {
        banned.add(said.get(at));
      }
    }
    return banned.stream().mapToInt(Integer::intValue).toArray();
  }
}
