package org.meteora.nn;

/** A block of keys and values of one sequence. */
public final class KvBlock {
  /** Tokens of a block: what prefixes are shared in steps of, a multiple of what kernels read. */
  public static final int TOKENS = 32;

  private KvBlock() {}

  /** Blocks that so many tokens take. */
  public static int of(int tokens) {
    return (tokens + TOKENS - 1) / TOKENS;
  }
}
