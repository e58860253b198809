package org.meteora.generate;

import org.meteora.model.KvCache;
import org.meteora.moe.ForwardContext;

/**
 * Decode steps of sequences whose prompts are in a cache already. What varies by request was given
 * at its beginning; for one thread.
 */
public interface DecodeSession extends AutoCloseable {
  /**
   * One step: runs a token of each row through the model and chooses the next.
   *
   * @param tokens the rows' newest tokens
   * @param banned tokens that each row must not choose
   * @param uniform each row's random number in [0, 1), in units of 2^−64; unused without sampling
   * @return the rows' next tokens
   */
  int[] step(int[] tokens, int[][] banned, long[] uniform);

  /** Keeps these of the present rows alone, in this order. */
  void keepRows(int[] rows);

  @Override
  void close();

  /** Begins sessions of one model; for any number of threads. */
  interface Provider extends AutoCloseable {
    /**
     * Takes over from a prefill.
     *
     * @param filled the cache after the prefill; the session's until it is closed
     * @param rows the cache's rows that go on, in order
     * @param maxLength columns that the cache can need at most
     * @param config how the next tokens are chosen
     * @param context what the request wants of the gated layers
     */
    DecodeSession begin(
        KvCache filled, int[] rows, int maxLength, GenerationConfig config, ForwardContext context);

    /** Frees what was kept for later sessions. */
    @Override
    void close();
  }
}
