package org.meteora.generate;

import org.meteora.UserException;

/** Is told what comes of requests, by their places in the list given to the generator. */
public interface AnswerListener {
  /**
   * Where the work stands.
   *
   * @param waiting requests that do not run yet
   * @param running requests that run
   * @param blocks of keys and values that they have
   * @param prefixTokens tokens so far that were not computed when their sequence joined, since
   *     their keys and values were there: of one that begins alike, or its own from before it was
   *     preempted
   */
  record Load(int waiting, int running, int blocks, long prefixTokens) {}

  /**
   * Whether a request for which there is room is still to be run: another process may have it.
   * Asked in the order of the list, perhaps again; nothing comes of one that is not to be run.
   */
  default boolean wants(int request) {
    return true;
  }

  /** A new token, never EOS. */
  default void onToken(int request, int token) {}

  /** A request has ended. */
  void onAnswer(int request, int[] tokens);

  /** A request has failed; the others go on, unless this throws, as it does by default. */
  default void onFailure(int request, UserException reason) {
    throw reason;
  }

  /** Before each step, and behind prompts that it waited for. */
  default void onStep(Load load) {}
}
