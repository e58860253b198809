package org.meteora.cuda.decode;

import java.util.List;
import java.util.Optional;
import org.meteora.cuda.kernel.AdapterMemory;
import org.meteora.nn.Scores;
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
 * @param scores what adapters are chosen by
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
    Scores scores,
    List<Layer> layers) {

  /**
   * One linear: {@code y = x Wᵀ + bias + adapters}.
   *
   * @param weight (out, in)
   * @param bias (out), or 0 for none
   */
  public record Linear(long weight, long bias, int out, int in, Optional<AdapterMemory> adapters) {}

  /**
   * What weighs all adapters in all linears of a layer, of {@link Scores#ALL}: {@code softmax(h Wᵀ
   * / T) + b} of what q, k and v read.
   *
   * @param weight W (N, hidden)
   * @param bias b, float32 (N)
   */
  public record Weigher(long weight, long bias, int adapters) {}

  /**
   * One decoder layer; the norms' weights are (hidden).
   *
   * @param linears the seven projections, q to down
   * @param weigher none where the weights are given, or nothing is weighed
   */
  public record Layer(
      long inputNorm, long postAttentionNorm, List<Linear> linears, Optional<Weigher> weigher) {}

  /** Whether it is said with each step which adapters act, and how much. */
  public boolean isGiven() {
    return scores == Scores.GIVEN
        || scores == Scores.ALL && layers.stream().allMatch(layer -> layer.weigher().isEmpty());
  }

  /** Adapters of a linear at most; 1 without adapters. */
  int maxAdapters() {
    return layers.stream()
        .flatMap(layer -> layer.linears().stream())
        .flatMap(linear -> linear.adapters().stream())
        .mapToInt(AdapterMemory::count)
        .max()
        .orElse(1);
  }
}
