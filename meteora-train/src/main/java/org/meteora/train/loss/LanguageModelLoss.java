package org.meteora.train.loss;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.stream.IntStream;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;
import org.meteora.train.batch.Batch;

/**
 * Next-token cross-entropy over the vocabulary, with its gradient, computed a few hundred tokens at
 * a time: the logits {@code (rows · seq, vocab)}, the largest tensor of a training step, never
 * exist whole. Positions without a label cost nothing.
 *
 * <p>For logits z = h Wᵀ and label y: loss = logsumexp(z) − z_y, ∂loss/∂z = softmax(z) − onehot(y),
 * ∂loss/∂h = (∂loss/∂z) W; z, its softmax and the gradient are in float32, the two products in the
 * model's dtype.
 */
public final class LanguageModelLoss {
  private static final long LOGITS_AT_ONCE = 1L << 26;

  private LanguageModelLoss() {}

  /**
   * @param sum the cross-entropies summed over all labels
   * @param losses each position's cross-entropy {@code (rows · seq)}, 0 where there is no label
   * @param gradient of {@code weight · sum} for the hidden states, their shape and dtype; owned by
   *     the hidden states' manager; null when it was not asked for
   */
  public record Result(double sum, float[] losses, NDArray gradient) {}

  /** How many tokens' logits are held at once for a vocabulary. */
  public static int chunkTokens(long vocabSize) {
    return (int) Math.clamp(LOGITS_AT_ONCE / vocabSize, 16, 8192);
  }

  /**
   * @param hidden after the last norm, {@code (rows, seq, hidden)}
   * @param head {@code (vocab, hidden)}
   * @param labels {@code (rows · seq)}, already shifted, {@link Batch#IGNORED} where there is none
   * @param weights scale the gradient, as 1 / number of labels of the whole step does: one for all,
   *     of each row, or of each position
   * @param withGradient whether the gradient is wanted
   * @param chunkTokens tokens at once, from {@link #chunkTokens}
   */
  public static Result compute(
      NDArray hidden,
      NDArray head,
      long[] labels,
      double[] weights,
      boolean withGradient,
      int chunkTokens) {
    long size = hidden.getShape().get(hidden.getShape().dimension() - 1);
    int positions = (int) (hidden.getShape().size() / size);
    if (labels.length != positions) {
      throw new IllegalArgumentException(labels.length + " labels for " + positions + " positions");
    }
    var labelled = IntStream.range(0, positions).filter(i -> labels[i] != Batch.IGNORED).toArray();
    try (NDManager scope = hidden.getManager().newSubManager();
        var off = Ops.notRecording()) {
      var dtype = Ops.dtype(hidden);
      var flat = Ops.alias(scope, hidden).reshape(positions, size);
      var gradient = withGradient ? Ops.zeros(scope, dtype, positions, size) : null;
      var losses = new float[positions];
      for (int from = 0; from < labelled.length; from += chunkTokens) {
        int count = Math.min(chunkTokens, labelled.length - from);
        try (NDManager chunk = scope.newSubManager()) {
          chunk(chunk, flat, head, labels, labelled, from, count, weights, gradient, losses);
        }
      }
      if (withGradient) {
        gradient = gradient.reshape(hidden.getShape());
        gradient.attach(hidden.getManager());
      }
      double sum = 0;
      for (float loss : losses) {
        sum += loss;
      }
      return new Result(sum, losses, gradient);
    }
  }

  private static void chunk(
      NDManager scope,
      NDArray flat,
      NDArray head,
      long[] labels,
      int[] labelled,
      int from,
      int count,
      double[] weights,
      NDArray gradient,
      float[] losses) {
    var where = new long[count];
    var wanted = new long[count];
    for (int i = 0; i < count; i++) {
      where[i] = labelled[from + i];
      wanted[i] = labels[labelled[from + i]];
    }
    var index = Ops.of(scope, where, count);
    var label = Ops.of(scope, wanted, count, 1);
    var hidden = Ops.indexSelect(flat, 0, index);
    hidden.attach(scope);
    var logits = Ops.cast(Ops.linear(hidden, head, null), Dtype.F32);
    var logProbabilities = logits.logSoftmax(-1);
    var chosen = logProbabilities.gather(label, 1).toFloatArray();
    for (int i = 0; i < count; i++) {
      losses[(int) where[i]] = -chosen[i];
    }
    if (gradient != null) {
      // all in place: the logits are the largest tensor there is
      var slope = Ops.expInPlace(logProbabilities);
      Ops.scatterAddInPlace(slope, 1, label, scope.full(Ops.shape(count, 1), -1f));
      var each = new float[count];
      for (int i = 0; i < count; i++) {
        each[i] = (float) weights[(int) (where[i] * weights.length / labels.length)];
      }
      slope = slope.muli(Ops.of(scope, each, count, 1));
      slope = Ops.cast(slope, Ops.dtype(head));
      var back = slope.matMul(head);
      // every position is written once: rows of the chunk go to their places
      for (int start = 0; start < count; ) {
        int end = start + 1;
        while (end < count && where[end] == where[end - 1] + 1) {
          end++;
        }
        try (NDManager run = scope.newSubManager()) {
          var target = Ops.narrow(gradient, 0, where[start], end - start);
          target.attach(run);
          var source = Ops.narrow(back, 0, start, end - start);
          source.attach(run);
          Ops.copy(target, source);
        }
        start = end;
      }
    }
  }
}
