package org.meteora.eval.routes;

import java.util.List;
import java.util.Map;

/**
 * Which adapters every gate chose for every token of one prompt and its answer, with what weights:
 * layers × 7 modules × tokens × k (the numbers behind figure 4 of the MeteoRA paper). Immutable;
 * made by {@link RoutingRecorder#trace}.
 *
 * <p>A <b>share</b> of an adapter at a token is the mean, over the gates looked at, of the weight
 * the gate gave it: shares of one token sum to 1. The adapter with the largest share
 * <b>dominates</b> the token.
 *
 * @param adapters their names in index order
 * @param tokens prompt, then answer
 * @param parts the tasks' stretches of the text, in order, not overlapping; empty when none are
 *     known
 * @param settings what the run depended on
 * @param layers decoder layers; gate {@code layer · 7 + module} is that of a layer's module
 * @param topK adapters for each token and gate
 * @param routedTokens how many tokens have a routing: all, or all but the last, which was written
 *     but not read
 * @param indices by gate, of each token topK adapters, the heaviest first, or −1 for none
 * @param weights of these
 */
public record RoutingTrace(
    List<String> adapters,
    List<RoutedToken> tokens,
    List<Part> parts,
    Map<String, Object> settings,
    int layers,
    int topK,
    int routedTokens,
    short[][] indices,
    float[][] weights) {
  /** Stands for all layers, or all modules. */
  public static final int ALL = -1;

  public RoutingTrace {
    adapters = List.copyOf(adapters);
    tokens = List.copyOf(tokens);
    parts = List.copyOf(parts);
  }

  public int promptTokens() {
    return RoutedToken.promptTokens(tokens);
  }

  /** The adapter a gate chose as number {@code rank} (0 is the heaviest), or −1 for none. */
  public int adapter(int layer, int module, int token, int rank) {
    return indices[layer * RoutingRecorder.MODULES.size() + module][token * topK + rank];
  }

  /** The weight of {@link #adapter}. */
  public float weight(int layer, int module, int token, int rank) {
    return weights[layer * RoutingRecorder.MODULES.size() + module][token * topK + rank];
  }

  /**
   * Every adapter's share at a token.
   *
   * @param layer a layer, or {@link #ALL}
   * @param module a module, or {@link #ALL}
   * @return one number for each adapter, summing to 1; all 0 when no gate saw the token
   */
  public double[] shares(int layer, int module, int token) {
    var shares = new double[adapters.size()];
    if (token >= routedTokens) {
      return shares;
    }
    int modules = RoutingRecorder.MODULES.size();
    int gates = 0;
    for (int l = layer == ALL ? 0 : layer; l < (layer == ALL ? layers : layer + 1); l++) {
      for (int m = module == ALL ? 0 : module; m < (module == ALL ? modules : module + 1); m++) {
        boolean seen = false;
        for (int k = 0; k < topK; k++) {
          int adapter = adapter(l, m, token, k);
          if (adapter >= 0) {
            shares[adapter] += weight(l, m, token, k);
            seen = true;
          }
        }
        gates += seen ? 1 : 0;
      }
    }
    for (int a = 0; a < shares.length && gates > 0; a++) {
      shares[a] /= gates;
    }
    return shares;
  }

  /** The index of the largest number above 0, the first of equals; −1 when there is none. */
  public static int dominant(double[] shares) {
    int best = -1;
    for (int a = 0; a < shares.length; a++) {
      if (shares[a] > (best < 0 ? 0 : shares[best])) {
        best = a;
      }
    }
    return best;
  }

  /**
   * Whether the right adapter dominates a part.
   *
   * @param expected index of the task's adapter; −1 when the model has none of that name
   * @param dominant index of the adapter with the largest mean share; −1 for a part without routing
   * @param expectedShare mean share of the expected adapter, 0…1
   * @param rightTokens share of the tokens that the expected adapter dominates, 0…1
   */
  public record Verdict(
      Part part, int expected, int dominant, double expectedShare, double rightTokens) {
    public boolean right() {
      return expected >= 0 && expected == dominant;
    }
  }

  /** One verdict for each part, over all gates. */
  public List<Verdict> verdicts() {
    return parts.stream().map(this::verdict).toList();
  }

  private Verdict verdict(Part part) {
    int expected = adapters.indexOf(part.task());
    var mean = new double[adapters.size()];
    int count = 0;
    int right = 0;
    for (int t = part.from(); t < Math.min(part.to(), routedTokens); t++) {
      var shares = shares(ALL, ALL, t);
      int dominant = dominant(shares);
      count += dominant >= 0 ? 1 : 0;
      right += dominant >= 0 && dominant == expected ? 1 : 0;
      for (int a = 0; a < mean.length; a++) {
        mean[a] += shares[a];
      }
    }
    int dominant = dominant(mean);
    double expectedShare = expected < 0 || count == 0 ? 0 : mean[expected] / count;
    return new Verdict(
        part, expected, dominant, expectedShare, count == 0 ? 0 : 1.0 * right / count);
  }
}
