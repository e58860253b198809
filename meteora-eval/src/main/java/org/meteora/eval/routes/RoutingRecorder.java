package org.meteora.eval.routes;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import org.meteora.moe.RoutingListener;
import org.meteora.nn.Projection;

/**
 * Collects the routing of one request while it is answered: the prompt's tokens in one or more
 * passes, then a token a pass. Nothing is computed here, arrays are copied, so that generation is
 * not held up. Memory: 6 bytes for each layer × module × token × k.
 */
public final class RoutingRecorder implements RoutingListener {
  /** Projections of a decoder layer in the order of their module numbers. */
  public static final List<String> MODULES = Projection.NAMES;

  /** What one gate chose; {@code used} entries of {@code topK} values each are filled. */
  static final class Gate {
    int used;
    short[] indices = new short[0];
    float[] weights = new float[0];
  }

  private final List<Gate> gates = new ArrayList<>();
  private int topK;

  @Override
  public void onRouting(
      int layer, int module, int rows, int tokens, int topK, int[] indices, float[] weights) {
    if (this.topK == 0) {
      this.topK = topK;
    }
    if (topK != this.topK) {
      throw new IllegalStateException("top-k changed from " + this.topK + " to " + topK);
    }
    int number = layer * MODULES.size() + module;
    while (gates.size() <= number) {
      gates.add(new Gate());
    }
    var gate = gates.get(number);
    int values = tokens * topK;
    if (gate.used + values > gate.indices.length) {
      int capacity = Math.max(gate.used + values, gate.used + gate.used / 2 + 64 * topK);
      gate.indices = Arrays.copyOf(gate.indices, capacity);
      gate.weights = Arrays.copyOf(gate.weights, capacity);
    }
    for (int i = 0; i < values; i++) {
      gate.indices[gate.used + i] = (short) indices[i];
    }
    System.arraycopy(weights, 0, gate.weights, gate.used, values);
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
