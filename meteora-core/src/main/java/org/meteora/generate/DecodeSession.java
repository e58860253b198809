package org.meteora.generate;

import java.util.List;
import java.util.Optional;
import org.meteora.model.KvCache;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.Router;

/**
 * Decode steps of sequences that come and go. What is wanted of the gated layers was given at its
 * beginning; for one thread.
 */
public interface DecodeSession extends AutoCloseable {
  /** The token of a row whose logits are not finite. */
  int NOT_FINITE = -1;

  /**
   * A sequence's next step.
   *
   * @param slot its place in the session
   * @param token its newest
   * @param banned tokens that it must not choose
   * @param uniform a random number in [0, 1), in units of 2^−64; unused without sampling
   * @param config how its next token is chosen
   * @param router chooses its adapters; empty for the router of the whole session
   */
  record Next(
      int slot,
      int token,
      int[] banned,
      long uniform,
      GenerationConfig config,
      Optional<Router.Rows.Row> router) {}

  /** Sequences at once that there is memory for when they come to what was said. */
  int sequences();

  /** Columns of keys and values that there is memory for, of all sequences together. */
  long kvCapacity();

  /**
   * Takes over from a prefill.
   *
   * @param filled keys and values of prompts, a span each; the session's from now on
   * @param slots a free place for each, below the number of sequences
   * @throws org.meteora.UserException when there is too little memory
   */
  void join(KvCache filled, int[] slots);

  /**
   * One step: runs a token of each sequence through the model and chooses the next. A routing
   * listener hears them in this order.
   *
   * @param rows all sequences that are there, those that were there before first and in the same
   *     order
   * @return the rows' next tokens; {@link #NOT_FINITE} where logits are not finite
   */
  int[] step(List<Next> rows);

  /** A sequence goes; its place is free. */
  void leave(int slot);

  @Override
  void close();

  /** Begins sessions of one model; for any number of threads. */
  interface Provider extends AutoCloseable {
    /**
     * @param sequences at once, at most
     * @param tokens that a sequence is expected to come to, prompt and answer
     * @param context what the request wants of the gated layers
     */
    DecodeSession begin(int sequences, int tokens, ForwardContext context);

    /** Sequences at once that it is made for. */
    default int maxSequences() {
      return Integer.MAX_VALUE;
    }

    /** Tokens of prompts that a step waits for at most. */
    default int prefillTokens() {
      return 512;
    }

    /** Frees what was kept for later sessions. */
    @Override
    void close();
  }
}
