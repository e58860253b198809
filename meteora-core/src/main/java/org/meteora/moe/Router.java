package org.meteora.moe;

import ai.djl.ndarray.NDArray;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import org.meteora.UserException;
import org.meteora.nn.Scores;
import org.meteora.tensor.Ops;

/**
 * Who decides which adapters act on a token. Each is one of five kinds, by what it gives or looks
 * at; {@link Gate} turns scores into weights. Immutable, but for a {@link Probe}.
 */
public sealed interface Router {
  /** The gate of each linear, as in the paper. */
  Gates GATES = new Gates();

  /** What {@code --router} and saved results call it. */
  String name();

  /** The router for these of the present batch rows, in this order, as rows leave a batch. */
  default Router keepRows(int[] rows) {
    return this;
  }

  /**
   * The router for the step that runs these newest tokens of the batch's rows.
   *
   * @param tokens one of each row
   */
  default Router next(int[] tokens) {
    return this;
  }

  /** Scores every adapter for every token of every linear; the best k act, by softmax over T. */
  non-sealed interface Scoring extends Router {
    /**
     * @param x the linear's input {@code (tokens, in)}
     * @return {@code (tokens, N)}; −∞ for an adapter that is not to act while another does
     */
    NDArray scores(GatedLinear linear, NDArray x);

    /**
     * The same for kernels.
     *
     * @param linear with adapters that act on it
     * @throws org.meteora.UserException when kernels cannot score so: the portable forms run then
     */
    ScoredBank forKernels(GatedLinear linear);
  }

  /** Gives the weights themselves; T is not used. */
  non-sealed interface Choosing extends Router {
    /**
     * @param x the linear's input {@code (tokens, in)}, row after row of the batch
     * @param rows of the batch
     */
    Choice choose(GatedLinear linear, NDArray x, int rows);
  }

  /** Gives every adapter a weight of its own, by operations that are recorded; k is not used. */
  non-sealed interface Weighing extends Router {
    /**
     * @param x the linear's input {@code (tokens, in)}
     * @param context with the layer's input ({@link ForwardContext#layerInput})
     * @return {@code (tokens, N)} float32, of any sum
     */
    NDArray weights(GatedLinear linear, NDArray x, ForwardContext context);
  }

  /** Looks at whole prompts first; what it then chooses holds for their answers. */
  non-sealed interface Probing extends Router {
    /** Runs along a pass over the prompts of one batch. */
    Probe probe();
  }

  /** Reads the tokens of prompts, and then of their answers. */
  non-sealed interface Reading extends Router {
    /**
     * What serves these prompts, from their prefill on.
     *
     * @param prompts of the batch's rows
     */
    Router of(List<int[]> prompts);
  }

  /** Sees the prompts; for one pass of one thread. */
  interface Probe extends Choosing {
    /**
     * After the pass: what serves these prompts from now on.
     *
     * @param topK adapters at most
     */
    Router chosen(int topK);
  }

  /** The gate of each linear scores the adapters. */
  record Gates() implements Scoring {
    @Override
    public String name() {
      return "gate";
    }

    @Override
    public NDArray scores(GatedLinear linear, NDArray x) {
      return Ops.linear(x, linear.bank().gate(), null); // x Gᵀ
    }

    @Override
    public ScoredBank forKernels(GatedLinear linear) {
      return linear.layout().scored(Scores.PRODUCT, linear.bank().gate());
    }
  }

  /**
   * The same adapters with the same weights on all tokens of a batch row, in every linear.
   *
   * @param name what it is called
   * @param topK adapters a row
   * @param adapters {@code (rows, topK)}; a single row is for all
   * @param weights as {@code adapters}
   */
  record Fixed(String name, int topK, List<Integer> adapters, List<Float> weights)
      implements Choosing {
    public Fixed {
      adapters = List.copyOf(adapters);
      weights = List.copyOf(weights);
      if (topK < 1 || adapters.isEmpty() || adapters.size() % topK != 0) {
        throw new IllegalArgumentException(adapters.size() + " adapters, " + topK + " a row");
      }
      if (weights.size() != adapters.size()) {
        throw new IllegalArgumentException("not as many weights as adapters");
      }
    }

    /** One adapter a row, with the weight 1. */
    public Fixed(List<Integer> adapters) {
      this("single", 1, adapters, Collections.nCopies(adapters.size(), 1f));
    }

    @Override
    public Choice choose(GatedLinear linear, NDArray x, int rows) {
      int tokens = (int) x.getShape().get(0);
      requireBelow(linear.bank().size());
      var choice = new Choice(tokens, topK);
      boolean one = adapters.size() == topK;
      for (int token = 0; token < tokens; token++) {
        int from = one ? 0 : token / (tokens / rows) * topK;
        for (int j = 0; j < topK; j++) {
          choice.indices()[token * topK + j] = adapters.get(from + j);
          choice.weights()[token * topK + j] = weights.get(from + j);
        }
      }
      return choice;
    }

    private void requireBelow(int size) {
      for (int adapter : adapters) {
        if (adapter < 0 || adapter >= size) {
          throw new UserException(
              "no adapter " + adapter + ": there are " + size + " adapters, counted from 0");
        }
      }
    }

    @Override
    public Router keepRows(int[] rows) {
      if (adapters.size() == topK) {
        return this;
      }
      var keptAdapters = new ArrayList<Integer>();
      var keptWeights = new ArrayList<Float>();
      for (int row : rows) {
        keptAdapters.addAll(adapters.subList(row * topK, (row + 1) * topK));
        keptWeights.addAll(weights.subList(row * topK, (row + 1) * topK));
      }
      return new Fixed(name, topK, keptAdapters, keptWeights);
    }
  }

  /** One adapter alone on every token, with the weight 1. */
  static Fixed fixed(int adapter) {
    return fixed("single", adapter);
  }

  /** As {@link #fixed(int)}, under another name. */
  static Fixed fixed(String name, int adapter) {
    return new Fixed(name, 1, List.of(adapter), List.of(1f));
  }

  /** All of {@code size} adapters, each with the weight 1/{@code size}. */
  static Fixed uniform(int size) {
    var all = new ArrayList<Integer>();
    for (int i = 0; i < size; i++) {
      all.add(i);
    }
    return new Fixed("uniform", size, all, Collections.nCopies(size, 1f / size));
  }
}
