package org.meteora.moe;

/**
 * Decides which adapters act on the tokens of one sequence, by their places in it, and the same in
 * every linear. Immutable.
 */
public interface SequenceRouter {
  /**
   * @param first the first token's place in the sequence; places below 0 are padding
   * @param tokens how many, none behind the newest
   * @return adapters of a token, at most as many as the k that it was made with
   */
  Choice choose(int first, int tokens);

  /** What serves the sequence when it has one token more. */
  default SequenceRouter next(int token) {
    return this;
  }
}
