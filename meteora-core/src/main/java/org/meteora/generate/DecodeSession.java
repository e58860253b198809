package org.meteora.generate;

import ai.djl.ndarray.NDArray;
import java.util.List;
import java.util.Optional;
import java.util.OptionalInt;
import org.meteora.model.KvCache;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.Router;

/**
 * Decode steps of sequences that come and go. Their keys and values are in the blocks of one pool;
 * which are whose is the caller's business. What is wanted of the gated layers was given at its
 * beginning; for one thread.
 */
public interface DecodeSession extends AutoCloseable {
  /** The token of a row whose logits are not finite. */
  int NOT_FINITE = -1;

  /**
   * A sequence's next step.
   *
   * @param blocks of the pool that hold its keys and values in order, the newest token's included,
   *     which are written in the step; the same array as in the step before while they are the same
   * @param length tokens before the newest
   * @param token its newest
   * @param banned tokens that it must not choose
   * @param uniform a random number in [0, 1), in units of 2^−64; unused without sampling
   * @param nextUniform that of the token after it
   * @param config how its next token is chosen
   * @param router chooses its adapters; empty for the router of the whole session
   */
  record Next(
      int[] blocks,
      int length,
      int token,
      int[] banned,
      long uniform,
      long nextUniform,
      GenerationConfig config,
      Optional<Router.Rows.Row> router) {}

  /**
   * Keys and values: each row is a block of {@link KvCache#BLOCK} tokens. No step is under way when
   * it returns, and {@link #isAhead} no longer holds.
   */
  KvCache pool();

  /** Blocks of the pool. */
  default int blocks() {
    return pool().rows();
  }

  /**
   * Copies keys and values of prompts into blocks.
   *
   * @param filled holds them
   * @param columns from there to blocks of the pool
   * @throws org.meteora.UserException when there is too little memory
   */
  void join(KvCache filled, List<KvCache.Columns> columns);

  /** Whether {@link #first} takes logits; else what the last layer gives, before the norm. */
  default boolean takesLogits() {
    return true;
  }

  /**
   * The tokens behind prompts that have been run and {@linkplain #join joined}; no routing listener
   * hears of it.
   *
   * @param rows with each prompt's last token as the newest
   * @param last of each one's last token logits {@code (rows, vocab)} float32, or the last layer's
   *     output {@code (rows, hidden)} in the model's dtype, as {@link #takesLogits} says
   * @return as {@link #step}
   */
  int[] first(List<Next> rows, NDArray last);

  /**
   * One step: runs a token of each sequence through the model and chooses the next. A routing
   * listener hears them in this order.
   *
   * @param goesOn whether these are likely to take another step next, with the tokens that this one
   *     chooses: a session may begin it before it returns
   * @return the rows' next tokens; {@link #NOT_FINITE} where logits are not finite
   */
  int[] step(List<Next> rows, boolean goesOn);

  /**
   * Whether a step has begun that nobody has asked for yet. Its rows, or those of them that are
   * left, have it done by a step of them alone; with any other it was in vain.
   */
  default boolean isAhead() {
    return false;
  }

  @Override
  void close();

  /** Begins sessions of one model; for any number of threads. */
  @FunctionalInterface
  interface Provider extends AutoCloseable {
    /**
     * @param sequences at once, at most
     * @param tokens that a sequence may come to, prompt and answer
     * @param context what the request wants of the gated layers
     * @throws org.meteora.UserException when there is no memory for a single block
     */
    DecodeSession begin(int sequences, int tokens, ForwardContext context);

    /** Sequences at once that it is made for. */
    default int maxSequences() {
      return Integer.MAX_VALUE;
    }

    /**
     * Tokens of prompts that a step waits for at most; one of few sequences, while others' places
     * are free, waits for several times as many.
     */
    default int prefillTokens() {
      return 512;
    }

    /**
     * Tokens of each pass over a prompt but its last, where sums depend on what is run together and
     * none may: each prompt is then run by itself, what is known of it counts in such passes, and
     * no sequence is put back. Empty where they may, or do not.
     */
    default OptionalInt passTokens() {
      return OptionalInt.empty();
    }

    /** Frees what was kept for later sessions; nothing, unless a provider says otherwise. */
    @Override
    default void close() {}
  }
}
