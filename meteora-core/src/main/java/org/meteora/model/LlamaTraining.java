package org.meteora.model;

import ai.djl.ndarray.NDArray;
import java.util.function.IntConsumer;
import org.meteora.moe.ForwardContext;

/**
 * Losses and gradients of a whole Llama by a backend's own code, instead of operations recorded one
 * by one. Not for several threads at once.
 */
public interface LlamaTraining extends AutoCloseable {
  /** Marks what is no label, as in PyTorch. */
  long IGNORED = -100;

  /** Which layers' activations are computed again in the backward pass. */
  enum Recompute {
    /** As many as must be, by the memory that is free. */
    AUTO,
    ALL,
    NONE
  }

  /**
   * Rows of tokens, padded on the right.
   *
   * @param ids {@code (rows, length)}
   * @param lengths of each row without padding; {@code length} is the longest
   * @param labels next tokens {@code (rows, length)}, or {@link #IGNORED}
   * @param tasks the adapter that is right for a position {@code (rows, length)}, or {@link
   *     #IGNORED}; null: gates have no loss
   * @param weights of each row's cross-entropies in the loss, or one for all
   * @param gateWeight of each gate's cross-entropy at a position in the loss
   * @param seed of dropout
   */
  record Input(
      long[] ids,
      int[] lengths,
      int length,
      long[] labels,
      long[] tasks,
      double[] weights,
      double gateWeight,
      long seed) {}

  /**
   * What a pass gives, each {@code (rows, length)}.
   *
   * @param losses cross-entropies of the labels, 0 where there is none
   * @param gateLosses sums of all gates' cross-entropies
   * @param right how many gates have the right adapter first
   * @param dominating the adapter with the most weight over all gates; −1 where no task is asked
   *     for
   * @param gates how many there are; 0: the last three are empty
   */
  record Result(float[] losses, float[] gateLosses, float[] right, int[] dominating, long gates) {}

  /** Whether it computes what this context asks for. */
  boolean accepts(ForwardContext context);

  /**
   * One pass. With {@code gradients} it adds those of the trained parameters to their sums.
   *
   * @param context whether adapters' inputs are dropped, k, and who chooses
   * @param done is told the decoder layers, from the last to the first, whose gradients have all
   *     that this pass adds to them
   */
  Result run(Input input, ForwardContext context, boolean gradients, IntConsumer done);

  /**
   * One decoder layer by itself, forward and backward: the gradient of its input.
   *
   * @param hidden {@code (rows, seq, hidden)}
   * @param gradient of the layer's output, as {@code hidden}
   * @return owned by the manager of {@code hidden}
   */
  NDArray layer(int layer, NDArray hidden, NDArray gradient, ForwardContext context);

  /** Is told when a pass comes to another part of its work. */
  interface Watch {
    /** What is queued from now on belongs to this part. */
    void begin(Part part);
  }

  /** Parts of a pass. */
  enum Part {
    FORWARD,
    FORWARD_ADAPTERS,
    ATTENTION,
    RECOMPUTATION,
    LOSS,
    BACKWARD,
    BACKWARD_ADAPTERS,
    WEIGHT_GRADIENTS,
    ATTENTION_BACKWARD,
    /** Norms, activations, rotations, sums. */
    BETWEEN_PRODUCTS,
    /** What comes back to the host. */
    RESULTS
  }

  /**
   * Watches all passes from now on.
   *
   * @param watch null for none
   */
  void watch(Watch watch);

  /** How many layers the last pass with gradients computed again. */
  int recomputedLayers();

  /** Gives its memory back; the next pass takes it again. */
  @Override
  void close();
}
