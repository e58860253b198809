package org.meteora.cuda.kernel;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.Random;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.meteora.cuda.kernel.WideProduct.Deal;

class WideProductTest {
  /** As measured to be quick, 64 rows on 132 multiprocessors: W; gates and A of 28 adapters. */
  @ParameterizedTest
  @CsvSource({
    "6144, 756, 4096, 2, 14, 2, 4", // q k v
    "4096, 252, 4096, 4, 17, 2, 3", // o
    "28672, 504, 4096, 1, 28, 1, 5", // gate, up
    "4096, 252, 14336, 4, 17, 2, 3" // down
  })
  void dealsOutLlamas(int w, int few, int k, int slices, int ofBlock, int chunks, int stages) {
    var deal = Deal.of(132, new int[] {w / 8, (few + 7) / 8}, k, 64);

    assertThat(deal.slices()).isEqualTo(slices);
    assertThat(deal.ofBlock()).isEqualTo(ofBlock);
    assertThat(deal.chunks()).isEqualTo(chunks);
    assertThat(deal.stages()).isEqualTo(stages);
  }

  @Test
  void gatesAndAOfGateAndUpAreDoneEarlyByWhatIsLeftOfMultiprocessors() {
    int[] gateUp = {28672 / 8, 504 / 8};
    assertThat(Deal.of(132, gateUp, 4096, 64).ofEarlyBlock(132, gateUp, 1)).isEqualTo(16);

    // DecodeEngineGpuTest's
    int[] small = {2048 / 8, 2048 / 8, 488 / 8};
    assertThat(Deal.of(132, small, 512, 64).ofEarlyBlock(132, small, 2)).isEqualTo(3);

    int[] sliced = {6144 / 8, 756 / 8};
    assertThat(Deal.of(132, sliced, 4096, 64).ofEarlyBlock(132, sliced, 1)).isZero();

    // 112 and one block of 32 groups: nothing is left
    int[] full = {112 * 32, 20 * 32};
    assertThat(Deal.of(132, full, 4096, 64).ofEarlyBlock(132, full, 1)).isZero();
  }

  @Test
  void dealsOutAnything() {
    var random = new Random(1);
    for (int round = 0; round < 2000; round++) {
      var groups = random.ints(1 + random.nextInt(9), 1, 3000).toArray();
      var multiprocessors = 1 + random.nextInt(140);
      var rows = 17 + random.nextInt(48);
      var deal = Deal.of(multiprocessors, groups, 64 * (1 + random.nextInt(200)), rows);

      assertThat(deal.most()).isBetween(1, 32);
      assertThat(deal.ofBlock() % deal.most()).isZero();
      assertThat(deal.stages()).isPositive();
      assertThat(deal.sharedBytes(rows)).isLessThanOrEqualTo(227 << 10);
      if (multiprocessors >= groups.length) {
        int blocks = IntStream.of(groups).map(each -> Math.ceilDiv(each, deal.ofBlock())).sum();
        assertThat(blocks * deal.slices()).isLessThanOrEqualTo(multiprocessors);
        int early = deal.ofEarlyBlock(multiprocessors, groups, 0);
        if (early > 0) {
          assertThat(early).isLessThan(deal.ofBlock());
          blocks += Math.ceilDiv(groups[0], early) - Math.ceilDiv(groups[0], deal.ofBlock());
          assertThat(blocks).isLessThanOrEqualTo(multiprocessors);
        }
      }
    }
  }
}
