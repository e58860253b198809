package org.meteora.cuda;

import java.util.List;
import java.util.Optional;
import org.meteora.UserException;
import org.meteora.tensor.Dtype;

/**
 * A Llama with MeteoRA as device addresses: what {@link DecodeEngine} reads. All matrices are
 * row-major and contiguous, in {@code dtype}; the owner keeps them alive as long as the engine.
 *
 * @param dtype f32, f16 or bf16
 * @param headDim even
 * @param invFreq float32 (headDim / 2), the rotary frequencies after scaling
 * @param ropeScale factor of cos and sin, 1 for the rope types default, linear and llama3
 * @param embedding (vocab, hidden)
 * @param finalNorm (hidden)
 * @param head (vocab, hidden); the embedding's address when tied
 * @param topK adapters per token; ignored without adapters
 */
public record DecodeModel(
    Dtype dtype,
    int hidden,
    int heads,
    int kvHeads,
    int headDim,
    int intermediate,
    int vocab,
    float eps,
    long invFreq,
    float ropeScale,
    long embedding,
    long finalNorm,
    long head,
    int topK,
    List<Layer> layers) {

  /**
   * The adapters of one linear (paper, section 3.1).
   *
   * @param gate (N, in)
   * @param a (Σr, in), the adapters' rows one after another
   * @param b Bᵀ (Σr, out), so that a chosen rank is one contiguous row
   * @param ranks N ranks, 0…64; 0 where an adapter does not target this linear
   * @param scales N scales
   */
  public record Adapters(long gate, long a, long b, int[] ranks, float[] scales) {
    public int count() {
      return ranks.length;
    }

    public int sumOfRanks() {
      var sum = 0;
      for (var rank : ranks) {
        sum += rank;
      }
      return sum;
    }

    /** N + 1 offsets of the adapters' rows in {@code a}. */
    int[] offsets() {
      var offsets = new int[ranks.length + 1];
      for (var i = 0; i < ranks.length; i++) {
        offsets[i + 1] = offsets[i] + ranks[i];
      }
      return offsets;
    }

    void check(int topK) {
      if (topK < 1 || topK > count()) {
        throw new UserException(
            "cannot choose " + topK + " of " + count() + " adapters (--routing-top-k)");
      }
      for (var rank : ranks) {
        if (rank < 0 || rank > 64) {
          throw new UserException("the fused CUDA path takes ranks up to 64, not " + rank);
        }
      }
    }
  }

  /**
   * One linear: {@code y = x Wᵀ + bias + adapters}.
   *
   * @param weight (out, in)
   * @param bias (out), or 0 for none
   */
  public record Linear(long weight, long bias, int out, int in, Optional<Adapters> adapters) {}

  /** One decoder layer; the norms' weights are (hidden). */
  public record Layer(
      long inputNorm,
      long postAttentionNorm,
      Linear q,
      Linear k,
      Linear v,
      Linear o,
      Linear gate,
      Linear up,
      Linear down) {
    /** The seven projections, q to down. */
    public List<Linear> linears() {
      return List.of(q, k, v, o, gate, up, down);
    }
  }

  /** This model without its adapters. */
  public DecodeModel base() {
    var plain =
        layers.stream()
            .map(
                l ->
                    new Layer(
                        l.inputNorm,
                        l.postAttentionNorm,
                        bare(l.q),
                        bare(l.k),
                        bare(l.v),
                        bare(l.o),
                        bare(l.gate),
                        bare(l.up),
                        bare(l.down)))
            .toList();
    return new DecodeModel(
        dtype,
        hidden,
        heads,
        kvHeads,
        headDim,
        intermediate,
        vocab,
        eps,
        invFreq,
        ropeScale,
        embedding,
        finalNorm,
        head,
        topK,
        plain);
  }

  private static Linear bare(Linear linear) {
    return new Linear(linear.weight, linear.bias, linear.out, linear.in, Optional.empty());
  }

  int maxAdapters() {
    var most = 1;
    for (var layer : layers) {
      for (var linear :
          List.of(layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down)) {
        most = Math.max(most, linear.adapters.map(Adapters::count).orElse(1));
      }
    }
    return most;
  }
}
