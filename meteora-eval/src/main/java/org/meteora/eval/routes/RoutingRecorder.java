package org.meteora.eval.routes;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import org.meteora.moe.RoutingListener;
import org.meteora.nn.Projection;

/**
 * Collects the routing of one batch row while it is generated: the prompt's tokens in one or more
 * passes, then a token a pass. Nothing is computed here, arrays are copied, so that generation is
 * not held up. Memory: 6 bytes for each layer × module × token × k.
 */
public final class RoutingRecorder implements RoutingListener {
  /** Projections of a decoder layer in the order of their module numbers. */
  public static final List<String> MODULES = Projection.NAMES;

  /** What one gate chose; {@code used} entries of {@code topK} values each are filled. */
  static final class Gate {
    int columns;
    int used;
    short[] indices = new short[0];
    float[] weights = new float[0];
  }

  private final int row;
  private final int leftPadding;
  private final List<Gate> gates = new ArrayList<>();
  private int topK;
  private int rows;

  /** Records a batch of one row without padding. */
  public RoutingRecorder() {
    this(0, 0);
  }

  /**
   * @param row the row to record; the batch must keep all its rows while it is recorded
   * @param leftPadding columns of padding before the row's first token, which are left out
   */
  public RoutingRecorder(int row, int leftPadding) {
    this.row = row;
    this.leftPadding = leftPadding;
  }

  @Override
  public void onRouting(
      int layer, int module, int rows, int tokens, int topK, int[] indices, float[] weights) {
    if (this.topK == 0) {
      this.topK = topK;
      this.rows = rows;
    }
    if (topK != this.topK) {
      throw new IllegalStateException("top-k changed from " + this.topK + " to " + topK);
    }
    if (rows != this.rows || row >= rows) {
      throw new IllegalStateException(
          "the batch went from " + this.rows + " to " + rows + " rows while one was recorded");
    }
    int number = layer * MODULES.size() + module;
    while (gates.size() <= number) {
      gates.add(new Gate());
    }
    var gate = gates.get(number);
    int skip = Math.clamp(leftPadding - gate.columns, 0, tokens);
    gate.columns += tokens;
    int values = (tokens - skip) * topK;
    if (gate.used + values > gate.indices.length) {
      int capacity = Math.max(gate.used + values, gate.used + gate.used / 2 + 64 * topK);
      gate.indices = Arrays.copyOf(gate.indices, capacity);
      gate.weights = Arrays.copyOf(gate.weights, capacity);
    }
    int from = (row * tokens + skip) * topK;
    for (int i = 0; i < values; i++) {
      gate.indices[gate.used + i] = (short) indices[from + i];
    }
    System.arraycopy(weights, from, gate.weights, gate.used, values);
    gate.used += values;
  }

  /**
   * What was recorded, put beside the tokens.
   *
   * @param adapters names in index order
   * @param tokens prompt and answer; the last one has no routing when generation ended before it
   *     was read
   * @param parts the tasks' stretches of the text; may be empty
   * @param settings what the run depended on, kept for the reports
   * @throws IllegalArgumentException when more tokens were recorded than given, or an adapter index
   *     has no name
   */
  public RoutingTrace trace(
      List<String> adapters,
      List<RoutedToken> tokens,
      List<Part> parts,
      Map<String, Object> settings) {
    int modules = MODULES.size();
    int layers = (gates.size() + modules - 1) / modules;
    var indices = new short[layers * modules][];
    var weights = new float[layers * modules][];
    int routed = gates.stream().mapToInt(gate -> gate.used).max().orElse(0) / Math.max(1, topK);
    if (routed > tokens.size()) {
      throw new IllegalArgumentException(
          routed + " tokens were recorded, but the text has " + tokens.size());
    }
    for (int g = 0; g < indices.length; g++) {
      var gate = g < gates.size() ? gates.get(g) : new Gate();
      indices[g] = Arrays.copyOf(gate.indices, routed * topK);
      weights[g] = Arrays.copyOf(gate.weights, routed * topK);
      Arrays.fill(indices[g], gate.used, routed * topK, (short) -1);
      Arrays.fill(weights[g], gate.used, routed * topK, 0);
      for (short index : indices[g]) {
        if (index >= adapters.size() || index < -1) {
          throw new IllegalArgumentException(
              "adapter " + index + " was chosen, but only " + adapters.size() + " have names");
        }
      }
    }
    return new RoutingTrace(
        adapters, tokens, parts, settings, layers, Math.max(1, topK), routed, indices, weights);
  }
}
