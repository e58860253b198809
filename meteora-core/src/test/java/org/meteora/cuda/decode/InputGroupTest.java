package org.meteora.cuda.decode;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import org.junit.jupiter.api.Test;
import org.meteora.cuda.decode.DecodeModel.Layer;
import org.meteora.cuda.decode.DecodeModel.Linear;
import org.meteora.cuda.kernel.AdapterMemory;
import org.meteora.nn.Projection;
import org.meteora.nn.Scores;
import org.meteora.tensor.Dtype;

class InputGroupTest {
  private static final long ROW = 64;

  /** Gate and up of 8 outputs, with adapters of these ranks behind each other or apart. */
  private static InputGroup group(long at, long gap, int[] gateRanks, int[] upRanks) {
    var gate = linear(at, gap, gateRanks);
    return new InputGroup(0, 4, List.of(gate, linear(at + 8192, gap, upRanks)), Optional.empty());
  }

  private static Linear linear(long at, long gap, int[] ranks) {
    if (ranks.length == 0) {
      return new Linear(at, 0, 8, 32, Optional.empty());
    }
    long gates = at + 8 * ROW + gap;
    var adapters =
        new AdapterMemory(gates, gates + ranks.length * ROW, at + 4096, ranks, new float[2]);
    return new Linear(at, 0, 8, 32, Optional.of(adapters));
  }

  /** The memory of products is reckoned for one of those that are alike. */
  @Test
  void layersAreAlikeWhereverTheyLie() {
    int[] none = {};
    int[] ranks = {8, 8};
    var shape = group(1 << 20, 0, ranks, ranks).shape(ROW);

    assertThat(group(3 << 20, 0, ranks, ranks).shape(ROW)).isEqualTo(shape);
    assertThat(group(3 << 20, 16, ranks, ranks).shape(ROW)).isNotEqualTo(shape);
    assertThat(group((3 << 20) + 8, 0, ranks, ranks).shape(ROW)).isNotEqualTo(shape);
    assertThat(group(3 << 20, 0, new int[] {16, 0}, ranks).shape(ROW)).isNotEqualTo(shape);
    assertThat(group(3 << 20, 0, new int[] {8, 16}, ranks).shape(ROW)).isNotEqualTo(shape);
    assertThat(group(3 << 20, 0, ranks, none).shape(ROW))
        .isNotEqualTo(shape)
        .isNotEqualTo(group(3 << 20, 0, none, ranks).shape(ROW));
  }

  @Test
  void ofLayersThatAreAlikeTheFirstStandsForAll() {
    int[] none = {};
    int[] ranks = {8, 8};
    var layers = List.of(layer(1 << 20, ranks), layer(2 << 20, ranks), layer(3 << 20, none));
    var model =
        new DecodeModel(
            Dtype.BF16, 32, 1, 1, 2, 8, 5, 1e-5f, 0, 1, 0, 0, 0, 2, Scores.PRODUCT, layers);

    assertThat(InputGroup.different(model))
        .extracting(group -> group.layer() + " " + group.input())
        .containsExactly(
            "0 ATTENTION",
            "0 ATTENTION_HEADS",
            "0 MLP",
            "0 MLP_INNER",
            "2 ATTENTION",
            "2 ATTENTION_HEADS",
            "2 MLP",
            "2 MLP_INNER");
  }

  private static Layer layer(long at, int[] ranks) {
    var linears =
        Arrays.stream(Projection.values())
            .map(projection -> linear(at + projection.ordinal() * 8192L, 0, ranks))
            .toList();
    return new Layer(0, 0, linears, Optional.empty());
  }

  @Test
  void matricesAreInTheOrderOfMemory() {
    var matrices = group(1 << 20, 0, new int[] {8, 0}, new int[] {}).matrices();

    assertThat(matrices).extracting(it -> it.rows()).containsExactly(8, 2, 8, 8);
    assertThat(matrices)
        .extracting(it -> it.address() - (1 << 20))
        .containsExactly(0L, 8 * ROW, 10 * ROW, 8192L);
  }
}
