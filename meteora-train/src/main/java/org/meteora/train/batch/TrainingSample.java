package org.meteora.train.batch;

/**
 * One tokenised sample.
 *
 * @param id where it came from, for messages: {@code task:line}
 * @param tokens prompt and response, at most {@code max_seq_len}
 * @param promptTokens how many of them belong to the prompt
 * @param task the task's adapter index
 */
public record TrainingSample(String id, int[] tokens, int promptTokens, int task) {
  public int length() {
    return tokens.length;
  }
}
