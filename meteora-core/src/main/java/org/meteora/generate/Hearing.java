package org.meteora.generate;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.meteora.moe.RoutingListener;

/**
 * Hands what gates choose to those who listen to single sequences: each token once, however often
 * it is run, and nothing of a pass that fails.
 */
final class Hearing implements RoutingListener {
  /**
   * A row of a pass.
   *
   * @param first the place in the sequence of the pass's first column; negative for padding
   */
  record Row(Sequence sequence, int first) {}

  private record Told(
      RoutingListener to, int layer, int module, int topK, int[] indices, float[] weights) {}

  private final List<Told> told = new ArrayList<>();
  private List<Row> rows = List.of();
  private int columns;

  /**
   * A pass begins.
   *
   * @param columns tokens of each row
   */
  void begin(List<Row> rows, int columns) {
    this.rows = rows;
    this.columns = columns;
    told.clear();
  }

  @Override
  public void onRouting(
      int layer, int module, int count, int tokens, int topK, int[] indices, float[] weights) {
    for (int i = 0; i < count; i++) {
      var row = rows.get(i);
      int skip = Math.clamp((long) row.sequence.heard - row.first, 0, tokens);
      if (row.sequence.listener.isPresent() && skip < tokens) {
        int from = (i * tokens + skip) * topK;
        int to = (i + 1) * tokens * topK;
        told.add(
            new Told(
                row.sequence.listener.get(),
                layer,
                module,
                topK,
                Arrays.copyOfRange(indices, from, to),
                Arrays.copyOfRange(weights, from, to)));
      }
    }
  }

  /** The pass has come to its end: its listeners are told. */
  void end() {
    for (var each : told) {
      each.to.onRouting(
          each.layer,
          each.module,
          1,
          each.indices.length / each.topK,
          each.topK,
          each.indices,
          each.weights);
    }
    told.clear();
    for (var row : rows) {
      row.sequence.heard = Math.max(row.sequence.heard, row.first + columns);
    }
  }
}
