package org.meteora.model;

import com.fasterxml.jackson.databind.JsonNode;
import java.util.Set;
import org.meteora.nn.Projection;

/**
 * The shape of a decoder of Llama's kind: RMS norms, rotary positions, grouped-query attention and
 * a gated MLP. A model family is what reads its {@code config.json} into one of these.
 *
 * @param tieWordEmbeddings the output head is the embedding
 * @param raw the whole {@code config.json}
 */
public record Architecture(
    int vocabSize,
    int hiddenSize,
    int intermediateSize,
    int numHiddenLayers,
    int numAttentionHeads,
    int numKeyValueHeads,
    int headDim,
    int maxPositionEmbeddings,
    double rmsNormEps,
    Set<Projection> biased,
    boolean tieWordEmbeddings,
    Rope rope,
    JsonNode raw) {

  /**
   * Rotary position embedding.
   *
   * @param type {@code default}, {@code linear} or {@code llama3}
   * @param theta base of the frequencies
   * @param factor stretches positions; 1 for {@code default}
   * @param lowFreqFactor llama3 only
   * @param highFreqFactor llama3 only
   * @param originalMaxPositionEmbeddings llama3 only
   */
  public record Rope(
      String type,
      double theta,
      double factor,
      double lowFreqFactor,
      double highFreqFactor,
      int originalMaxPositionEmbeddings) {}

  public Architecture {
    biased = Set.copyOf(biased);
  }

  /** A projection's weight: {@code (out, in)}. */
  public long[] shape(Projection projection) {
    long heads = (long) numAttentionHeads * headDim;
    long keyValueHeads = (long) numKeyValueHeads * headDim;
    return switch (projection) {
      case Q -> new long[] {heads, hiddenSize};
      case K, V -> new long[] {keyValueHeads, hiddenSize};
      case O -> new long[] {hiddenSize, heads};
      case GATE, UP -> new long[] {intermediateSize, hiddenSize};
      case DOWN -> new long[] {hiddenSize, intermediateSize};
    };
  }
}
