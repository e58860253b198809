package org.meteora.model;

import ai.djl.ndarray.NDArray;
import java.util.List;
import org.meteora.tensor.Ops;

/** What lies between a model's products. */
public interface LayerOps {
  /**
   * {@code x / sqrt(mean(x²) + eps) · weight} over the last dimension.
   *
   * @param x {@code (…, hidden)}
   * @param norm its weight and eps
   */
  NDArray norm(NDArray x, RmsNorm norm);

  /**
   * A residual sum and its norm.
   *
   * @param sum {@code (…, hidden)}; may be memory of {@code added}
   */
  record Normed(NDArray sum, NDArray normed) {}

  /**
   * {@code h + added}, and the norm of it.
   *
   * @param added as {@code h}; may be changed
   */
  Normed addAndNorm(NDArray h, NDArray added, RmsNorm norm);

  /**
   * {@code sum + x}.
   *
   * @param sum may be changed
   */
  NDArray add(NDArray sum, NDArray x);

  /**
   * Heads for attention.
   *
   * @param queries {@code (batch, heads, seq, headDim)}
   * @param keys {@code (batch, kvHeads, keys, headDim)}
   * @param values as {@code keys}
   */
  record Heads(NDArray queries, NDArray keys, NDArray values) {}

  /**
   * Rotates queries and keys; with a cache, puts keys and values behind those in it.
   *
   * @param queries {@code (batch, seq, heads · headDim)}; keys and values as well, of their heads;
   *     all may be changed
   * @return all keys and values so far
   */
  Heads rotate(NDArray queries, NDArray keys, NDArray values, Pass pass, int layer);

  /**
   * Rotates queries and keys, puts keys and values into the blocks of a pass whose cache is a pool,
   * and attends.
   *
   * @param queries {@code (rows, 1, heads · headDim)}, or {@code (1, tokens, heads · headDim)}
   *     where {@link Backend#fillsBlocks}; keys and values as well, of their heads; all may be
   *     changed
   * @return as {@code queries}
   */
  NDArray attend(NDArray queries, NDArray keys, NDArray values, Pass pass, int layer);

  /**
   * {@code silu(gate) · up}.
   *
   * @param gate may be changed
   */
  NDArray siluUp(NDArray gate, NDArray up);

  /**
   * Logits.
   *
   * @param x {@code (rows, hidden)}
   * @param head {@code (vocab, hidden)}
   * @return {@code (rows, vocab)}
   */
  default NDArray head(NDArray x, NDArray head) {
    return Ops.linear(x, head, null);
  }

  /** Copies columns of all layers' keys and values from one cache into another. */
  void copyColumns(KvCache from, KvCache to, List<KvCache.Columns> columns);
}
