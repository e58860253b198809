package org.meteora.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import ai.djl.Device;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.meteora.tensor.Devices;

class RangesTest {
  /** The rest of a sequence at column 10, a whole one behind it, and the first two of a third. */
  @Test
  void piecesBecomeColumnsAndRanges() {
    var pieces =
        List.of(new Ranges.Piece(10, 4, 3), new Ranges.Piece(17, 0, 1), new Ranges.Piece(18, 0, 2));
    try (var manager = Devices.newManager(Device.cpu())) {
      var ranges = Ranges.of(manager, pieces);
      assertThat(ranges.columns().toLongArray()).containsExactly(14, 15, 16, 17, 18, 19);
      assertThat(ranges.queries().toIntArray()).containsExactly(0, 3, 4, 6);
      assertThat(ranges.keys().toIntArray()).containsExactly(0, 7, 8, 10);
      assertThat(ranges.maxQueries()).isEqualTo(3);
      assertThat(ranges.maxKeys()).isEqualTo(7);
      assertThat(ranges.first()).isEqualTo(10);
      assertThat(ranges.count()).isEqualTo(10);
      var gap = List.of(new Ranges.Piece(0, 0, 3), new Ranges.Piece(4, 0, 1));
      assertThatThrownBy(() -> Ranges.of(manager, gap))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageStartingWith("pieces with a gap");
    }
  }
}
