package org.meteora.moe;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.List;
import java.util.Optional;

/**
 * Computes gated linears that read the same input: q, k and v, or gate and up; or one by itself.
 * All implementations give what {@link GatedLinear#formula} gives.
 */
public interface GatedForward {
  /** The linears, in order. */
  List<GatedLinear> linears();

  /**
   * One pass.
   *
   * @param x {@code (…, in)}; results belong to its manager
   * @return each linear's, in order
   */
  List<GatedLinear.Output> forward(NDArray x, ForwardContext context);

  /** A backend's implementations; one object serves a model. */
  interface Provider {
    /**
     * The implementation for linears with one input. It may lay their parameters out anew.
     *
     * @param linears one to three, of one decoder layer; a linear can be in one group only
     * @throws IllegalArgumentException for gates over different numbers of adapters
     */
    GatedForward of(List<GatedLinear> linears);

    /**
     * A tape for a recorded pass through these linears; empty where they are recorded by libtorch.
     *
     * @param parent what the tape keeps goes with it, or with the tape
     */
    default Optional<GatedTape> tape(
        NDManager parent, List<GatedLinear> linears, ForwardContext context) {
      return Optional.empty();
    }

    /**
     * Begins an inference pass through all gated layers of a model. A backend may gather what its
     * gates choose, and tell the listener, in the same order, when the pass is closed.
     */
    default RoutedPass begin(ForwardContext context) {
      return new RoutedPass(context, () -> {});
    }
  }

  /**
   * A pass through all gated layers of a model.
   *
   * @param context what the layers are to be given
   */
  record RoutedPass(ForwardContext context, Runnable end) implements AutoCloseable {
    @Override
    public void close() {
      end.run();
    }
  }
}
