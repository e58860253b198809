package org.meteora.cuda.kernel;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.stream.IntStream;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class TokenTilesTest {
  /** What a block may have on cards of compute capability 8.6, 8.0 and 9.0. */
  @ParameterizedTest
  @ValueSource(ints = {101376, 166912, 232448})
  void everyTokenHasAPlaceAndEveryLaunchItsMemory(int sharedMemory) {
    for (int linears = 1; linears <= 3; linears++) {
      for (int topK = 1; topK <= Kernels.MAX_TOP_K; topK++) {
        for (int adapters : new int[] {topK, 28, Kernels.MAX_ADAPTERS}) {
          for (int tokens : new int[] {1, 7, 8, 37, 2048, 2100, 100_000}) {
            var tiles = TokenTiles.of(tokens, linears, topK, adapters, sharedMemory);
            assertThat(tiles.chunk()).isBetween(8, 2048);
            assertThat(tiles.chunk() % 8).isZero();
            assertThat((long) tiles.chunks() * tiles.chunk()).isGreaterThanOrEqualTo(tokens);
            assertThat((tiles.chunks() - 1) * tiles.chunk()).isLessThan(tokens);
            assertThat(tiles.ofChunk()).isGreaterThanOrEqualTo(worst(tiles));
            assertThat(topK * TokenTiles.bytes(tokens))
                .isGreaterThanOrEqualTo((long) tiles.all() * TokenTiles.TILE_BYTES);
            var adding = tiles.adding(132, linears, IntStream.of(4096, 1024));
            assertThat(adding.shared()).isLessThanOrEqualTo(sharedMemory);
            assertThat(tiles.sorting(3).shared()).isLessThanOrEqualTo(sharedMemory);
          }
        }
      }
    }
  }

  /** Tiles where all but one adapter have one token more than fills theirs. */
  private static int worst(TokenTiles tiles) {
    int left = tiles.topK() * tiles.chunk();
    int needed = 0;
    for (int e = 0; e < tiles.adapters() - 1 && left > 0; e++) {
      int its = Math.min(left, left / TokenTiles.TILE > tiles.adapters() - e ? 17 : 1);
      needed += Math.ceilDiv(its, TokenTiles.TILE);
      left -= its;
    }
    return needed + Math.ceilDiv(left, TokenTiles.TILE);
  }
}
