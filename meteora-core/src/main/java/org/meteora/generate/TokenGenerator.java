package org.meteora.generate;

import java.util.List;

/** Continues token sequences. */
@FunctionalInterface
public interface TokenGenerator {
  /**
   * Continues all prompts as one left-padded batch, from which finished rows leave.
   *
   * @param prompts token ids, each with at least one
   * @param listener is told every new token as it is chosen (EOS left out)
   * @return each prompt's new tokens, EOS and padding left out, in the order given
   * @throws org.meteora.UserException when a prompt is longer than {@code config.maxLength()} or
   *     the model's positions, or the logits are not finite
   */
  List<int[]> generate(List<int[]> prompts, GenerationConfig config, TokenListener listener);

  /** {@link #generate(List, GenerationConfig, TokenListener)} without a listener. */
  default List<int[]> generate(List<int[]> prompts, GenerationConfig config) {
    return generate(prompts, config, (row, token) -> {});
  }
}
