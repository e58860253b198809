package org.meteora.backend.cpu;

import ai.djl.ndarray.NDArray;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import org.meteora.moe.BankLayout;
import org.meteora.moe.Choice;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.Gate;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.GatedLinear.Output;
import org.meteora.moe.Router;
import org.meteora.tensor.Blas;
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
   * One linear.
   *
   * @param x {@code (…, in)} float32
   */
  static Output forward(GatedLinear linear, NDArray x, ForwardContext context) {
    var bank = linear.bank();
    var shape = x.getShape();
    var y = linear.base(x);
    int in = (int) shape.get(shape.dimension() - 1);
    int tokens = (int) (shape.size() / in);
    NDArray logits = null;
    try (var rows = Ops.contiguous(x)) {
      Choice choice;
      switch (linear.router(context)) {
        case Router.Gates gates -> {
          logits =
              Ops.empty(
                  x.getManager(), Dtype.F32, GatedLinear.withLast(shape, bank.size()).getShape());
          choice =
              route(
                  rows, bank.gate(), logits, linear.topK(context), context.routing().temperature());
        }
        case Router.Scoring scoring -> {
          choice = new Choice(tokens, linear.topK(context));
          try (var flat = rows.reshape(tokens, in);
              var scores = Ops.contiguous(scoring.scores(linear, flat))) {
            double temperature = context.routing().temperature();
            Gate.choose(Ops.memory(scores), bank.size(), choice, 0, tokens, temperature);
          }
        }
        case Router.Choosing choosing -> {
          try (var flat = rows.reshape(tokens, in)) {
            choice = choosing.choose(linear, flat, GatedLinear.batchRows(shape));
          }
        }
        case Router.Weighing weighing -> {
          try (var flat = rows.reshape(tokens, in)) {
            choice = Gate.all(weighing.weights(linear, flat, context)).download();
          }
        }
        case Router.Probe probe -> {
          try (var flat = rows.reshape(tokens, in)) {
            probe.see(linear, flat, GatedLinear.batchRows(shape));
          }
          return new Output(y, null);
        }
        case Router.Probing probing -> throw GatedLinear.unprobed(probing);
        case Router.Reading reading -> throw GatedLinear.unprobed(reading);
      }
      linear.report(context, choice, shape);
      if (bank.totalRank() > 0) {
        add(rows, y, linear.layout(), choice);
      }
    }
    if (logits != null && !context.gateLogits()) {
      logits.close();
      logits = null;
    }
    return new Output(y, logits);
  }

  /**
   * {@link Gate#choose} of x {@code (…, in)}, row-major.
   *
   * @param gate {@code (N, in)}
   * @param logits {@code (…, N)}, written here
   */
  private static Choice route(
      NDArray x, NDArray gate, NDArray logits, int topK, double temperature) {
    int n = (int) gate.getShape().get(0);
    int in = (int) gate.getShape().get(1);
    int tokens = (int) (x.getShape().size() / in);
    var values = Ops.memory(logits);
    if (tokens == 1) {
      Blas.multiply(n, in, 1, Ops.memory(gate), Ops.memory(x), 0, values);
    } else {
      Blas.productTransposed(tokens, n, in, Ops.memory(x), Ops.memory(gate), values);
    }
    var choice = new Choice(tokens, topK);
    Gate.choose(values, n, choice, 0, tokens, temperature);
    return choice;
  }

  /**
   * Adds the contribution to {@code y} in place.
   *
   * @param x {@code (…, in)} row-major
   * @param y {@code (…, out)} row-major
   */
  private static void add(NDArray x, NDArray y, BankLayout bank, Choice chosen) {
    int in = (int) (x.getShape().size() / chosen.tokens());
    int out = (int) (y.getShape().size() / chosen.tokens());
    var work =
        new Work(
            Ops.memory(x),
            Ops.memory(y),
            Ops.memory(bank.loraA()),
            Ops.memory(bank.loraBTransposed(false)),
            in,
            out,
            bank,
            chosen);
    if (chosen.tokens() < GROUP_FROM) {
      work.tokenByToken();
    } else {
      int workers = Math.min(Workers.count(), chosen.tokens());
      Workers.run(
          workers,
          i ->
              work.adapterByAdapter(
                  (int) ((long) chosen.tokens() * i / workers),
                  (int) ((long) chosen.tokens() * (i + 1) / workers)));
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
      Choice chosen) {

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
            Blas.multiply(rank, in, 1, rows(a, first, in), rows(x, token, in), 0, z);
            Blas.multiplyTransposed(
                rank, out, factor(pair), rows(b, first, out), z, 1, rows(y, token, out));
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
      Blas.threads(1);
      try (var arena = Arena.ofConfined()) {
        var inputs = arena.allocate((long) largest * in * Float.BYTES, 64);
        var z =
            arena.allocate((long) largest * Math.max(1, bank.bank().maxRank()) * Float.BYTES, 64);
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
          Blas.productTransposed(count, rank, in, inputs, rows(a, first, in), z);
          Blas.product(count, out, rank, z, rows(b, first, out), results);
          for (int i = 0; i < count; i++) {
            int pair = order[starts[adapter] + i];
            Blas.add(out, factor(pair), rows(results, i, out), rows(y, pair / k, out));
          }
        }
      } finally {
        Blas.threads(0);
      }
    }
  }
}
