package org.meteora.generate;

import ai.djl.ndarray.NDArray;
import java.util.Optional;
import org.meteora.model.KvCache;

/** Prompts that are run through a model together, in one or more passes. */
sealed interface Prefill extends AutoCloseable permits PaddedPrefill, OneRowPrefill {
  /** Whether all tokens have been run. */
  boolean isDone();

  /** Keys and values so far, a span each; empty where they are in blocks. */
  Optional<KvCache> cache();

  /**
   * What {@link DecodeSession#first} takes of each prompt's last token, when all have been run;
   * owned by this.
   */
  NDArray last();

  @Override
  void close();
}
