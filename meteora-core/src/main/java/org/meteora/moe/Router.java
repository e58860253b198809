package org.meteora.moe;

import java.util.List;
import org.meteora.UserException;

/**
 * Who decides which adapters act on a token. {@link Gate} holds the equations, for tensors and for
 * host memory: with it, and with what a backend's kernels know, a new router is one more case here.
 */
public sealed interface Router {
  /** The gate of each linear, as in the paper. */
  Router GATES = new Gates();

  /** The gate of each linear scores the adapters, the best k act. */
  record Gates() implements Router {}

  /**
   * One adapter on all tokens of a batch row, with the weight 1; no gate is computed.
   *
   * @param adapters of each batch row; a single one is for all rows
   */
  record Fixed(List<Integer> adapters) implements Router {
    public Fixed {
      adapters = List.copyOf(adapters);
      if (adapters.isEmpty()) {
        throw new IllegalArgumentException("no adapter");
      }
    }

    /** The adapter of a batch row. */
    public int of(int row) {
      return adapters.get(adapters.size() == 1 ? 0 : row);
    }

    /**
     * @throws UserException when there is no such adapter
     */
    public Fixed requireBelow(int size) {
      for (int adapter : adapters) {
        if (adapter < 0 || adapter >= size) {
          throw new UserException(
              "no adapter " + adapter + ": there are " + size + " adapters, counted from 0");
        }
      }
      return this;
    }
  }

  /** One adapter alone on every token. */
  static Router fixed(int adapter) {
    return new Fixed(List.of(adapter));
  }
}
