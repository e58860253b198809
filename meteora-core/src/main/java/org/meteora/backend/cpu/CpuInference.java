package org.meteora.backend.cpu;

import ai.djl.ndarray.NDArray;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Optional;
import org.meteora.UserException;
import org.meteora.moe.BankLayout;
import org.meteora.moe.Choice;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardMode;
import org.meteora.moe.Gate;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.GatedLinear.Output;
import org.meteora.moe.Router;
import org.meteora.tensor.Blas;
import org.meteora.tensor.Blas.Matrix;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;
import org.meteora.tensor.Workers;

/**
 * The adapters' contribution computed in Java on the tensors' own memory: inference on the CPU in
 * float32. Routing, the chosen adapters' rows of A and of Bᵀ, and the sum into the base result go
 * straight to the BLAS: for few tokens a tensor operation costs more than the arithmetic it does,
 * and for many tokens only the chosen adapters' arithmetic is done at all, k · r ranks a token and
 * not Σr.
 */
final class CpuInference {
  /** From this many tokens on an adapter's tokens are gathered, so that its rows are read once. */
  private static final int GROUP_FROM = 24;

  private CpuInference() {}

  /**
   * One linear: called by {@link CpuBackend} for each in float32, unless a flag names another form.
   *
   * <p>In {@link ForwardMode#INVARIANT} nothing depends on the number of tokens.
   *
   * @param x {@code (…, in)} float32
   */
  static Output forward(GatedLinear linear, NDArray x, ForwardContext context) {
    boolean invariant = context.mode() == ForwardMode.INVARIANT;
    // x Wᵀ (+ bias)
    var y =
        invariant ? RowProduct.here().linear(x, linear.weight(), linear.bias()) : linear.base(x);
    int n = linear.bank().size();
    boolean gated = linear.gated(context);
    var shape = GatedLinear.withLast(x.getShape(), n).getShape();
    var logits = gated ? Ops.empty(x.getManager(), Dtype.F32, shape) : null;
    try (var rows = Ops.contiguous(x)) {
      var choice = choose(linear, rows, logits, context);
      if (choice.isPresent()) {
        linear.report(context, choice.get(), x.getShape());
        if (linear.bank().totalRank() > 0) {
          add(rows, y, linear.layout(), choice.get(), invariant); // Σ weight · s · (x Aᵀ) Bᵀ
        }
      }
    }
    if (gated && !context.gateLogits()) {
      logits.close();
      logits = null;
    }
    return new Output(y, logits);
  }

  /**
   * Each token's adapters and their weights; empty where a router only looks.
   *
   * @param x {@code (…, in)} row-major
   * @param logits {@code (…, N)} of gates, written here
   */
  private static Optional<Choice> choose(
      GatedLinear linear, NDArray x, NDArray logits, ForwardContext context) {
    double temperature = context.routing().temperature();
    boolean invariant = context.mode() == ForwardMode.INVARIANT;
    int batchRows = GatedLinear.batchRows(x.getShape());
    int n = linear.bank().size();
    try (var rows = x.reshape(-1, linear.weight().getShape().get(1))) {
      int tokens = (int) rows.getShape().get(0);
      return switch (linear.router(context)) {
        case Router.Gates gates -> Optional.of(route(linear, x, logits, context));
        case Router other when invariant && !(other instanceof Router.Choosing) ->
            throw new UserException(
                "--batch-invariant: what the router %s sums depends on how many tokens there are;"
                    + " gates and single adapters do without",
                other.name());
        case Router.Scoring scoring -> {
          var choice = new Choice(tokens, linear.topK(context));
          try (var scores = Ops.contiguous(scoring.scores(linear, rows))) {
            Gate.choose(Ops.memory(scores), n, choice, 0, tokens, temperature);
          }
          yield Optional.of(choice);
        }
        case Router.Choosing choosing -> Optional.of(choosing.choose(linear, rows, batchRows));
        case Router.Weighing weighing ->
            Optional.of(Gate.all(weighing.weights(linear, rows, context)).download());
        case Router.Probe probe -> {
          probe.see(linear, rows, batchRows);
          yield Optional.empty();
        }
        case Router.Probing probing -> throw GatedLinear.unprobed(probing);
        case Router.Reading reading -> throw GatedLinear.unprobed(reading);
      };
    }
  }

  /**
   * {@link Gate#choose} of x {@code (…, in)}, row-major.
   *
   * @param logits {@code (…, N)}, written here
   */
  private static Choice route(
      GatedLinear linear, NDArray x, NDArray logits, ForwardContext context) {
    var gate = linear.bank().gate();
    int n = (int) gate.getShape().get(0);
    int in = (int) gate.getShape().get(1);
    int tokens = (int) (x.getShape().size() / in);
    var values = Ops.memory(logits);
    if (context.mode() == ForwardMode.INVARIANT) {
      RowProduct.here().run(tokens, n, in, Ops.memory(x), Ops.memory(gate), values);
    } else if (tokens == 1) {
      Blas.multiply(n, in, Ops.memory(gate), Ops.memory(x), values);
    } else {
      var transposed = new Matrix(Ops.memory(gate), in).transpose();
      Blas.product(
          tokens, n, in, new Matrix(Ops.memory(x), in), transposed, 0, new Matrix(values, n));
    }
    var choice = new Choice(tokens, linear.topK(context));
    Gate.choose(values, n, choice, 0, tokens, context.routing().temperature());
    return choice;
  }

  /**
   * Adds the contribution to {@code y} in place.
   *
   * @param x {@code (…, in)} row-major
   * @param y {@code (…, out)} row-major
   */
  private static void add(NDArray x, NDArray y, BankLayout bank, Choice chosen, boolean invariant) {
    int in = (int) (x.getShape().size() / chosen.tokens());
    int out = (int) (y.getShape().size() / chosen.tokens());
    var a = Ops.memory(bank.loraA());
    var b = Ops.memory(bank.loraBTransposed(false));
    var work = new Work(Ops.memory(x), Ops.memory(y), a, b, in, out, bank, chosen, invariant);
    if (chosen.tokens() < GROUP_FROM && !invariant) {
      work.tokenByToken();
    } else {
      Workers.share(chosen.tokens(), work::adapterByAdapter);
    }
  }

  /** One layer's tensors in host memory. */
  private record Work(
      MemorySegment x,
      MemorySegment y,
      MemorySegment a,
      MemorySegment b,
      int in,
      int out,
      BankLayout bank,
      Choice chosen,
      boolean invariant) {

    private MemorySegment rows(MemorySegment matrix, long first, int width) {
      return matrix.asSlice(first * width * Float.BYTES);
    }

    private float factor(int pair) {
      return chosen.weights()[pair] * (float) bank.bank().scales()[chosen.indices()[pair]];
    }

    /** Two matrix-vector products for each chosen adapter. */
    void tokenByToken() {
      try (var arena = Arena.ofConfined()) {
        var z = arena.allocate(Math.max(1, bank.bank().maxRank()) * (long) Float.BYTES, 64);
        for (int pair = 0; pair < chosen.indices().length; pair++) {
          int adapter = chosen.indices()[pair];
          int rank = bank.rank(adapter);
          if (rank > 0) {
            int token = pair / chosen.topK();
            long first = bank.offset(adapter);
            Blas.multiply(rank, in, rows(a, first, in), rows(x, token, in), z);
            Blas.addTransposed(
                rank, out, factor(pair), rows(b, first, out), z, rows(y, token, out));
          }
        }
      }
    }

    /**
     * Tokens {@code from} to {@code to}: those of each adapter are gathered, two matrix products,
     * and the results are added to their tokens.
     */
    void adapterByAdapter(int from, int to) {
      int n = bank.bank().size();
      int k = chosen.topK();
      var starts = new int[n + 1];
      for (int pair = from * k; pair < to * k; pair++) {
        starts[chosen.indices()[pair] + 1]++;
      }
      int largest = 0;
      for (int i = 0; i < n; i++) {
        largest = Math.max(largest, starts[i + 1]);
        starts[i + 1] += starts[i];
      }
      var next = starts.clone();
      var order = new int[(to - from) * k];
      for (int pair = from * k; pair < to * k; pair++) {
        order[next[chosen.indices()[pair]]++] = pair;
      }
      largest = invariant ? RowProduct.wholeRows(largest) : largest;
      try (var arena = Arena.ofConfined()) {
        var inputs = arena.allocate((long) largest * in * Float.BYTES, 64);
        int most = Math.max(RowProduct.FEWEST_OUTPUTS, bank.bank().maxRank());
        var z = arena.allocate((long) largest * most * Float.BYTES, 64);
        var results = arena.allocate((long) largest * out * Float.BYTES, 64);
        for (int adapter = 0; adapter < n; adapter++) {
          int count = starts[adapter + 1] - starts[adapter];
          int rank = bank.rank(adapter);
          if (count == 0 || rank == 0) {
            continue;
          }
          long first = bank.offset(adapter);
          for (int i = 0; i < count; i++) {
            long token = order[starts[adapter] + i] / k;
            long width = (long) in * Float.BYTES;
            MemorySegment.copy(x, token * width, inputs, i * width, width);
          }
          int columns = invariant ? Math.max(RowProduct.FEWEST_OUTPUTS, rank) : rank;
          var ownRows = rows(a, first, in);
          if (columns > rank) {
            ownRows = arena.allocate((long) columns * in * Float.BYTES, 64);
            MemorySegment.copy(rows(a, first, in), 0, ownRows, 0, (long) rank * in * Float.BYTES);
          }
          var ownA = new Matrix(ownRows, in).transpose();
          var ownB = new Matrix(rows(b, first, out), out);
          int together = invariant ? RowProduct.ROWS : count;
          for (int at = 0; at < count; at += together) {
            var ownZ = new Matrix(rows(z, at, columns), columns);
            var some = new Matrix(rows(inputs, at, in), in);
            Blas.product(together, columns, in, some, ownA, 0, ownZ);
            Blas.product(
                together, out, rank, ownZ, ownB, 0, new Matrix(rows(results, at, out), out));
          }
          for (int i = 0; i < count; i++) {
            int pair = order[starts[adapter] + i];
            Blas.add(out, factor(pair), rows(results, i, out), rows(y, pair / k, out));
          }
        }
      }
    }
  }
}
