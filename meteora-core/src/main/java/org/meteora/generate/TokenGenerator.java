package org.meteora.generate;

import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;
import org.meteora.UserException;

/** Continues token sequences. */
@FunctionalInterface
public interface TokenGenerator {
  /** Is told every new token of a generation as it is chosen. */
  @FunctionalInterface
  interface TokenListener {
    /**
     * @param row index of the prompt in the list given to the generator
     * @param tokenId the token, never EOS
     */
    void onToken(int row, int tokenId);
  }

  /**
   * Continues all prompts, some at once: one joins when there is room, and leaves when it ends. One
   * that fails, such as a prompt longer than the model takes or logits that are not finite, ends
   * alone.
   *
   * @param requests in the order in which they join
   * @param atOnce sequences at once at most, at least 1
   * @param listener is told every new token as it is chosen, and each answer, EOS and padding left
   *     out
   */
  void generate(List<Request> requests, int atOnce, AnswerListener listener);

  /**
   * Continues all prompts at once.
   *
   * @param listener is told every new token as it is chosen (EOS left out)
   * @return each request's new tokens, EOS and padding left out, in the order given
   * @throws UserException when a prompt is longer than its {@code maxLength} or the model's
   *     positions, or the logits are not finite
   */
  default List<int[]> generate(List<Request> requests, TokenListener listener) {
    var answers = new int[requests.size()][];
    generate(
        requests,
        Math.max(1, requests.size()),
        new AnswerListener() {
          @Override
          public void onToken(int request, int token) {
            listener.onToken(request, token);
          }

          @Override
          public void onAnswer(int request, int[] tokens) {
            answers[request] = tokens;
          }
        });
    return Arrays.asList(answers);
  }

  /**
   * As {@link #generate(List, TokenListener)}, with one setting for all and nobody who listens.
   *
   * @param prompts token ids, each with at least one; each draws from a stream of its own
   */
  default List<int[]> generate(List<int[]> prompts, GenerationConfig config) {
    return generate(
        IntStream.range(0, prompts.size())
            .mapToObj(i -> new Request(prompts.get(i), config, i))
            .toList(),
        (row, token) -> {});
  }
}
