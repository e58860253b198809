package org.meteora.moe;

import ai.djl.ndarray.NDArray;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Optional;
import java.util.stream.IntStream;
import org.meteora.UserException;
import org.meteora.nn.Scores;
import org.meteora.tensor.Ops;

/**
 * Who decides which adapters act on a token. Each is one of six kinds, by what it gives or looks
 * at; {@link Gate} turns scores into weights. Immutable, but for a {@link Probe}.
 */
public sealed interface Router {
  /** The gate of each linear, as in the paper. */
  Gates GATES = new Gates();

  /** What {@code --router} and saved results call it. */
  String name();

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

    /**
     * The same for kernels: what each layer's weights come from, null where no adapter acts; empty
     * when they come from anything else.
     */
    default Optional<List<LayerGate>> layerGates() {
      return Optional.empty();
    }
  }

  /** Looks at whole prompts first; what it then chooses holds for their answers. */
  non-sealed interface Probing extends Router {
    /** Runs along a pass over the prompts of one batch. */
    Probe probe();
  }

  /** Reads the tokens of a prompt, and then of its answer; k adapters at most act on each. */
  non-sealed interface Reading extends Router {
    /** What serves this prompt, from its first token on. */
    SequenceRouter of(int[] prompt);
  }

  /** Sees the prompts in a pass on which no adapter acts; for one pass of one thread. */
  non-sealed interface Probe extends Router {
    /**
     * @param x a linear's input {@code (tokens, in)}, row after row of the batch
     * @param rows of the batch, padded on their left
     */
    void see(GatedLinear linear, NDArray x, int rows);

    /**
     * After the pass: what serves each of its rows from now on.
     *
     * @param topK adapters at most
     */
    List<SequenceRouter> chosen(int topK);
  }

  /**
   * A router of its own for each of several sequences.
   *
   * @param rows one for each
   * @param tokens how many of each lie in a batch's only row, one sequence after another; empty:
   *     each has a batch row
   */
  record Rows(List<Row> rows, List<Integer> tokens) implements Choosing {
    /**
     * @param first the place in the sequence of the pass's first column of it; negative where its
     *     batch row begins with padding
     */
    public record Row(SequenceRouter router, int first) {}

    /** A batch row for each. */
    public Rows(List<Row> rows) {
      this(rows, List.of());
    }

    @Override
    public String name() {
      return "rows";
    }

    @Override
    public Choice choose(GatedLinear linear, NDArray x, int count) {
      int all = (int) x.getShape().get(0);
      var its = tokens.isEmpty() ? Collections.nCopies(count, all / count) : tokens;
      int sum = its.stream().mapToInt(Integer::intValue).sum();
      if (its.size() != rows.size() || sum != all || !tokens.isEmpty() && count != 1) {
        throw new IllegalArgumentException(
            "%d rows of %s, %d routers of %d tokens"
                .formatted(count, x.getShape(), rows.size(), sum));
      }
      return joined(
          linear,
          IntStream.range(0, its.size())
              .mapToObj(i -> rows.get(i).router.choose(rows.get(i).first, its.get(i)))
              .toList());
    }

    /** One after another; adapter 0 with the weight 0 where one has fewer. */
    private static Choice joined(GatedLinear linear, List<Choice> each) {
      int topK = each.stream().mapToInt(Choice::topK).max().orElseThrow();
      var all = new Choice(each.stream().mapToInt(Choice::tokens).sum(), topK);
      int to = 0;
      for (var from : each) {
        for (int token = 0; token < from.tokens(); token++) {
          int at = token * from.topK();
          System.arraycopy(from.indices(), at, all.indices(), to, from.topK());
          System.arraycopy(from.weights(), at, all.weights(), to, from.topK());
          to += topK;
        }
      }
      requireBelow(linear.bank().size(), all.indices());
      return all;
    }
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
   * @param adapters {@code (rows, topK)}; a single row is for all; as many as tokens are theirs
   * @param weights as {@code adapters}
   */
  record Fixed(String name, int topK, List<Integer> adapters, List<Float> weights)
      implements Choosing, SequenceRouter {
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
      int all = adapters.size() / topK;
      if (tokens % all != 0) {
        throw new IllegalArgumentException(tokens + " tokens, adapters of " + all + " rows");
      }
      var choice = choice(tokens);
      requireBelow(linear.bank().size(), choice.indices());
      return choice;
    }

    /** Each row's for as many of so many tokens. */
    private Choice choice(int tokens) {
      var choice = new Choice(tokens, topK);
      long all = adapters.size() / topK;
      for (int token = 0; token < tokens; token++) {
        int from = (int) (token * all / tokens) * topK;
        for (int j = 0; j < topK; j++) {
          choice.indices()[token * topK + j] = adapters.get(from + j);
          choice.weights()[token * topK + j] = weights.get(from + j);
        }
      }
      return choice;
    }

    /** The same for batch rows of these lengths whose tokens lie one after another in one row. */
    public Fixed ofTokens(int[] lengths) {
      if (isOne()) {
        return this;
      }
      var ofTokens = new ArrayList<Integer>();
      var weightsOfTokens = new ArrayList<Float>();
      for (int row = 0; row < lengths.length; row++) {
        for (int i = 0; i < lengths[row]; i++) {
          ofTokens.addAll(adapters.subList(row * topK, (row + 1) * topK));
          weightsOfTokens.addAll(weights.subList(row * topK, (row + 1) * topK));
        }
      }
      return new Fixed(name, topK, ofTokens, weightsOfTokens);
    }

    private boolean isOne() {
      return adapters.size() == topK;
    }

    /** Of a single row. */
    @Override
    public Choice choose(int first, int tokens) {
      if (!isOne()) {
        throw new IllegalStateException("for " + adapters.size() / topK + " rows, not for one");
      }
      return choice(tokens);
    }
  }

  /**
   * @param size N
   * @throws UserException when one is not among them
   */
  static void requireBelow(int size, int... adapters) {
    for (int adapter : adapters) {
      if (adapter < 0 || adapter >= size) {
        throw new UserException(
            "no adapter " + adapter + ": there are " + size + " adapters, counted from 0");
      }
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

  /** No adapter on any token: the base model. */
  static Fixed none() {
    return new Fixed("base", 1, List.of(0), List.of(0f));
  }

  /** All of {@code size} adapters, each with the weight 1/{@code size}. */
  static Fixed uniform(int size) {
    var all = IntStream.range(0, size).boxed().toList();
    return new Fixed("uniform", size, all, Collections.nCopies(size, 1f / size));
  }
}
