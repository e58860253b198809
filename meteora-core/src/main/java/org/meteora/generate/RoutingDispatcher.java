package org.meteora.generate;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.meteora.moe.RoutingListener;

/**
 * Hands what gates choose to those who listen to single sequences: each token once, however often
 * it is run, and nothing of a pass that fails.
 */
final class RoutingDispatcher implements RoutingListener {
  /**
   * A row of a pass.
   *
   * @param first the place in the sequence of the pass's first column; negative for padding
   * @param tokens the pass's columns of it
   */
  record Row(Sequence sequence, int first, int tokens) {}

  private record Report(
      RoutingListener to, int layer, int module, int topK, int[] indices, float[] weights) {}

  private final List<Report> reports = new ArrayList<>();
  private List<Row> rows = List.of();

  /** A pass over these begins, one after another. */
  void begin(List<Row> rows) {
    this.rows = rows;
    reports.clear();
  }

  @Override
  public void onRouting(
      int layer, int module, int count, int tokens, int topK, int[] indices, float[] weights) {
    int end = 0;
    for (var row : rows) {
      int begin = end;
      end += row.tokens;
      int skip = Math.clamp((long) row.sequence.reported - row.first, 0, row.tokens);
      if (row.sequence.listener.isPresent() && skip < row.tokens) {
        int from = (begin + skip) * topK;
        int to = end * topK;
        reports.add(
            new Report(
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
    for (var each : reports) {
      each.to.onRouting(
          each.layer,
          each.module,
          1,
          each.indices.length / each.topK,
          each.topK,
          each.indices,
          each.weights);
    }
    reports.clear();
    for (var row : rows) {
      row.sequence.reported = Math.max(row.sequence.reported, row.first + row.tokens);
    }
  }
}
