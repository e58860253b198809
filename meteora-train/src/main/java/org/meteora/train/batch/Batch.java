package org.meteora.train.batch;

import java.util.Arrays;
import java.util.List;
import java.util.stream.Collectors;

/**
 * Samples padded on the right to the longest of them. Labels are those of next-token prediction,
 * already shifted: position t is scored against token t + 1.
 *
 * @param samples one a row
 * @param responseOnly language-model labels cover the response's tokens alone
 */
public record Batch(List<TrainingSample> samples, boolean responseOnly) {
  /** Marks positions that count in no loss, as in PyTorch. */
  public static final int IGNORED = -100;

  public Batch {
    samples = List.copyOf(samples);
  }

  public int rows() {
    return samples.size();
  }

  /** The longest sample's length: {@code seq}. */
  public int length() {
    return samples.stream().mapToInt(TrainingSample::length).max().orElse(0);
  }

  /** Tokens that are not padding. */
  public int tokens() {
    return samples.stream().mapToInt(TrainingSample::length).sum();
  }

  public int[] lengths() {
    return samples.stream().mapToInt(TrainingSample::length).toArray();
  }

  /** Of numbers {@code (rows, seq)} those of the tokens, row after row without padding. */
  public long[] packed(long[] padded) {
    int length = length();
    var result = new long[tokens()];
    int at = 0;
    for (int row = 0; row < rows(); row++) {
      int count = samples.get(row).length();
      System.arraycopy(padded, row * length, result, at, count);
      at += count;
    }
    return result;
  }

  /** Token ids {@code (rows, seq)} row-major, padding is token 0 (it is never attended to). */
  public long[] ids() {
    return padded(0, (sample, t) -> sample.tokens()[t]);
  }

  /** Language-model labels {@code (rows, seq)}: the next token, or {@link #IGNORED}. */
  public long[] labels() {
    return padded(
        IGNORED,
        (sample, t) ->
            t + 1 == sample.length() || responseOnly && t + 1 < sample.promptTokens()
                ? IGNORED
                : sample.tokens()[t + 1]);
  }

  /** Gate labels {@code (rows, seq)}: the row's adapter wherever a next token exists. */
  public long[] gateLabels() {
    return padded(IGNORED, (sample, t) -> t + 1 == sample.length() ? IGNORED : sample.task());
  }

  private interface OfToken {
    long number(TrainingSample sample, int position);
  }

  /** {@code (rows, seq)}: a number of each token, and one for padding. */
  private long[] padded(long padding, OfToken of) {
    int length = length();
    var result = new long[rows() * length];
    Arrays.fill(result, padding);
    for (int row = 0; row < rows(); row++) {
      var sample = samples.get(row);
      for (int t = 0; t < sample.length(); t++) {
        result[row * length + t] = of.number(sample, t);
      }
    }
    return result;
  }

  /** How many labels count in the language-model loss. */
  public long labelCount() {
    return samples.stream()
        .mapToLong(s -> Math.max(0, s.length() - Math.max(1, responseOnly ? s.promptTokens() : 1)))
        .sum();
  }

  /** How many of a row's next tokens belong to its prompt; those after them are its answer's. */
  public int promptLabels(int row) {
    var sample = samples.get(row);
    return Math.clamp(sample.promptTokens() - 1L, 0, Math.max(0, sample.length() - 1));
  }

  /** How many of a row's next tokens belong to its answer. */
  public int answerLabels(int row) {
    return Math.max(0, samples.get(row).length() - 1) - promptLabels(row);
  }

  /** How many labels count in each gate's loss. */
  public long gateLabelCount() {
    return samples.stream().mapToLong(s -> Math.max(0, s.length() - 1)).sum();
  }

  /** The samples' ids, for messages. */
  public String sampleIds() {
    return samples.stream().map(TrainingSample::id).collect(Collectors.joining(", "));
  }
}
