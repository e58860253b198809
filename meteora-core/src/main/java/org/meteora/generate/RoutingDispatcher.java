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

  private final List<Runnable> reports = new ArrayList<>();
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
      end += row.tokens;
      int skip = Math.clamp((long) row.sequence.reported - row.first, 0, row.tokens);
      if (row.sequence.listener.isPresent() && skip < row.tokens) {
        var to = row.sequence.listener.get();
        int fresh = row.tokens - skip;
        var its = Arrays.copyOfRange(indices, (end - fresh) * topK, end * topK);
        var weight = Arrays.copyOfRange(weights, (end - fresh) * topK, end * topK);
        reports.add(() -> to.onRouting(layer, module, 1, fresh, topK, its, weight));
      }
    }
  }

  /** The pass has come to its end: its listeners are told. */
  void end() {
    reports.forEach(Runnable::run);
    reports.clear();
    for (var row : rows) {
      row.sequence.reported = Math.max(row.sequence.reported, row.first + row.tokens);
    }
  }
}
