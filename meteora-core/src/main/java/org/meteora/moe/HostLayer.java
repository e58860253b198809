package org.meteora.moe;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import org.meteora.torch.Blas;
import org.meteora.torch.Dtype;
import org.meteora.torch.Ops;
import org.meteora.torch.Workers;

/**
 * One gated layer in one training pass on {@link HostTape}: forward, what backward needs of it, and
 * backward. The (token, adapter) pairs are sorted by adapter; rows of the pairs of one adapter are
 * gathered, a few dozen at a time, and go to the BLAS.
 *
 * <pre>
 * z = A_i x̃ (x̃ = dropout(x)),   y += w s B_i z
 * ∂B_i = ∂y (w s z)ᵀ,   ∂z = w s B_iᵀ ∂y,   ∂A_i = ∂z x̃ᵀ,   ∂x̃ += A_iᵀ ∂z,   ∂w = s z · B_iᵀ ∂y
 * </pre>
 *
 * <p>Threads share work by tokens where rows are added to, and by columns where the adapters'
 * gradients are: no two write the same number, and the sums' order depends on the number of threads
 * alone.
 */
final class HostLayer {
  /** Rows gathered at once: as many as stay in the second-level cache. */
  private static final int ROWS = 64;

  private final MoeLinear layer;
  private final BankLayout bank;
  private final int tokens;
  private final int in;
  private final int out;
  private final int topK;
  private final int most;
  private final double dropout;
  private final NDArray x;
  private final NDArray input;
  private final NDArray kept;
  private final NDArray logits;
  private final NDArray y;
  private final HostForward.Chosen chosen;
  private final int[] starts;
  private final int[] order;
  private final MemorySegment z;

  /** Forward. */
  HostLayer(MoeLinear layer, NDManager manager, NDArray array) {
    this.layer = layer;
    bank = layer.layout();
    var shape = array.getShape();
    in = (int) shape.get(shape.dimension() - 1);
    out = (int) layer.weight().getShape().get(0);
    tokens = (int) (shape.size() / in);
    x = Ops.contiguous(array).reshape(tokens, in);
    x.attach(manager);
    var outer = Arrays.copyOf(shape.getShape(), shape.dimension());
    outer[outer.length - 1] = out;
    y = Ops.linear(x, layer.weight(), layer.bias()).reshape(Ops.shape(outer));
    outer[outer.length - 1] = bank.bank().size();
    logits = Ops.linear(x, bank.bank().gate(), null).reshape(Ops.shape(outer));
    topK = layer.topK();
    chosen = HostForward.route(logits.reshape(tokens, -1), topK, 1);
    layer.tell(chosen, shape);
    dropout = layer.dropoutInTraining();
    var dropped = dropout > 0 ? Ops.dropoutAndMask(x, dropout) : null;
    input = dropped == null ? x : dropped[0];
    kept = dropped == null ? null : dropped[1];
    most = Math.max(1, bank.bank().maxRank());
    int n = bank.bank().size();
    starts = new int[n + 1];
    for (int adapter : chosen.indices()) {
      starts[adapter + 1]++;
    }
    for (int i = 0; i < n; i++) {
      starts[i + 1] += starts[i];
    }
    var next = starts.clone();
    order = new int[tokens * topK];
    for (int pair = 0; pair < order.length; pair++) {
      order[next[chosen.indices()[pair]]++] = pair;
    }
    z = Ops.memory(Ops.empty(manager, Dtype.F32, order.length, most));
    var memoryX = Ops.memory(input);
    var memoryY = Ops.memory(y);
    byTokens((from, to) -> forward(from, to, memoryX, memoryY));
  }

  NDArray result() {
    return y;
  }

  NDArray logits() {
    return logits;
  }

  long[] inputShape() {
    return new long[] {tokens, in};
  }

  private interface Range {
    void run(int from, int to);
  }

  private void byTokens(Range range) {
    int workers = Math.min(Workers.count(), tokens);
    Workers.run(
        workers,
        i ->
            range.run(
                (int) ((long) tokens * i / workers), (int) ((long) tokens * (i + 1) / workers)));
  }

  private static void byColumns(int columns, Range range) {
    int lines = (columns + 15) / 16; // whole cache lines
    int workers = Math.min(Workers.count(), lines);
    Workers.run(
        workers,
        i ->
            range.run(
                (int) Math.min(columns, 16L * (lines * (long) i / workers)),
                (int) Math.min(columns, 16L * (lines * (i + 1L) / workers))));
  }

  /** First sorted position, from {@code at} on, of the adapter whose token is not before this. */
  private int position(int adapter, int token) {
    int low = starts[adapter];
    int high = starts[adapter + 1];
    while (low < high) {
      int middle = (low + high) >>> 1;
      if (order[middle] / topK < token) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  private interface Piece {
    void run(int adapter, int rank, int at, int count);
  }

  /** Pieces of at most {@link #ROWS} pairs of one adapter, of tokens {@code from} to {@code to}. */
  private void pieces(int from, int to, Piece piece) {
    Blas.threads(1);
    try {
      for (int adapter = 0; adapter < bank.bank().size(); adapter++) {
        int rank = bank.rank(adapter);
        if (rank > 0) {
          int end = position(adapter, to);
          for (int at = position(adapter, from); at < end; at += ROWS) {
            piece.run(adapter, rank, at, Math.min(ROWS, end - at));
          }
        }
      }
    } finally {
      Blas.threads(0);
    }
  }

  private static MemorySegment at(MemorySegment matrix, long index) {
    return matrix.asSlice(index * Float.BYTES);
  }

  private static MemorySegment scratch(Arena arena, int columns) {
    return arena.allocate((long) ROWS * columns * Float.BYTES, 64);
  }

  /** Columns {@code first} … of the rows of some pairs' tokens, one row after another. */
  private void gather(
      MemorySegment matrix,
      int columns,
      int first,
      int width,
      int at,
      int count,
      MemorySegment to) {
    long bytes = (long) width * Float.BYTES;
    for (int i = 0; i < count; i++) {
      long token = order[at + i] / topK;
      MemorySegment.copy(matrix, (token * columns + first) * Float.BYTES, to, i * bytes, bytes);
    }
  }

  private float factor(int pair, int adapter) {
    return chosen.weights()[pair] * (float) bank.bank().scales()[adapter];
  }

  private void forward(int from, int to, MemorySegment x, MemorySegment y) {
    var a = Ops.memory(bank.loraA());
    var b = Ops.memory(bank.loraB());
    int all = bank.bank().totalRank();
    try (var arena = Arena.ofConfined()) {
      var rows = scratch(arena, in);
      var results = scratch(arena, out);
      pieces(
          from,
          to,
          (adapter, rank, at, count) -> {
            int offset = (int) bank.offset(adapter);
            gather(x, in, 0, in, at, count, rows);
            var own = at(z, (long) at * most);
            Blas.product(
                false,
                true,
                count,
                rank,
                in,
                rows,
                in,
                at(a, (long) offset * in),
                in,
                0,
                own,
                most);
            Blas.product(
                false, true, count, out, rank, own, most, at(b, offset), all, 0, results, out);
            for (int i = 0; i < count; i++) {
              int pair = order[at + i];
              Blas.add(
                  out,
                  factor(pair, adapter),
                  at(results, (long) i * out),
                  at(y, (long) (pair / topK) * out));
            }
          });
    }
  }

  /**
   * Backward: adds to the gradients of gate, A and B where they are wanted, and to {@code gx}.
   *
   * @param scope for what is needed on the way
   * @param gy ∂y {@code (…, out)}
   * @param ownLogits the gradient of the logits from elsewhere {@code (…, N)}, or null
   * @param gx ∂x {@code (tokens, in)} to add to
   */
  void backward(NDManager scope, NDArray gy, NDArray ownLogits, NDArray gx) {
    if (gx != null) {
      Blas.product(
          false,
          false,
          tokens,
          in,
          out,
          Ops.memory(gy),
          out,
          Ops.memory(layer.weight()),
          in,
          1,
          Ops.memory(gx),
          in);
    }
    var weightGradients = new float[order.length];
    var gz = Ops.memory(Ops.empty(scope, Dtype.F32, order.length, most));
    var added = gx == null || kept == null ? gx : Ops.zeros(scope, Dtype.F32, tokens, in);
    var memoryY = Ops.memory(gy);
    var memoryX = added == null ? null : Ops.memory(added);
    byTokens((from, to) -> toInput(from, to, memoryY, memoryX, gz, weightGradients));
    if (added != gx) {
      gx.addi(Ops.dropoutGradient(added, kept, dropout));
    }
    toAdapters(scope, memoryY, gz);
    toGate(scope, ownLogits, weightGradients, gx);
  }

  /** ∂z, ∂w and ∂x̃ of some tokens; z becomes w s z, which is what ∂B needs. */
  private void toInput(
      int from, int to, MemorySegment gy, MemorySegment gx, MemorySegment gz, float[] gw) {
    var a = Ops.memory(bank.loraA());
    var b = Ops.memory(bank.loraB());
    int all = bank.bank().totalRank();
    try (var arena = Arena.ofConfined()) {
      var rows = scratch(arena, out);
      var results = scratch(arena, in);
      pieces(
          from,
          to,
          (adapter, rank, at, count) -> {
            int offset = (int) bank.offset(adapter);
            gather(gy, out, 0, out, at, count, rows);
            var own = at(gz, (long) at * most);
            Blas.product(
                false, false, count, rank, out, rows, out, at(b, offset), all, 0, own, most);
            float scale = (float) bank.bank().scales()[adapter];
            for (int i = 0; i < count; i++) {
              int pair = order[at + i];
              float factor = factor(pair, adapter);
              float dot = 0;
              for (int r = 0; r < rank; r++) {
                long index = (long) (at + i) * most + r;
                float gradient = gz.getAtIndex(JAVA_FLOAT, index);
                float value = z.getAtIndex(JAVA_FLOAT, index);
                dot += gradient * value;
                gz.setAtIndex(JAVA_FLOAT, index, factor * gradient);
                z.setAtIndex(JAVA_FLOAT, index, factor * value);
              }
              gw[pair] = scale * dot;
            }
            if (gx != null) {
              Blas.product(
                  false,
                  false,
                  count,
                  in,
                  rank,
                  own,
                  most,
                  at(a, (long) offset * in),
                  in,
                  0,
                  results,
                  in);
              for (int i = 0; i < count; i++) {
                long token = order[at + i] / topK;
                Blas.add(in, 1, at(results, (long) i * in), at(gx, token * in));
              }
            }
          });
    }
  }

  private void toAdapters(NDManager scope, MemorySegment gy, MemorySegment gz) {
    boolean wantsA = HostTape.requiresGradient(bank.loraA());
    boolean wantsB = HostTape.requiresGradient(bank.loraB());
    int all = bank.bank().totalRank();
    if (all == 0) {
      return;
    }
    if (wantsA) {
      var memory = HostTape.gradientMemory(bank.loraA(), scope);
      var rowsX = Ops.memory(input);
      byColumns(
          in,
          (from, to) -> {
            int width = to - from;
            try (var arena = Arena.ofConfined()) {
              var rows = scratch(arena, width);
              pieces(
                  0,
                  tokens,
                  (adapter, rank, at, count) -> {
                    gather(rowsX, in, from, width, at, count, rows);
                    Blas.product(
                        true,
                        false,
                        rank,
                        width,
                        count,
                        at(gz, (long) at * most),
                        most,
                        rows,
                        width,
                        1,
                        at(memory, bank.offset(adapter) * in + from),
                        in);
                  });
            }
          });
    }
    if (wantsB) {
      var memory = HostTape.gradientMemory(bank.loraB(), scope);
      byColumns(
          out,
          (from, to) -> {
            int width = to - from;
            try (var arena = Arena.ofConfined()) {
              var rows = scratch(arena, width);
              pieces(
                  0,
                  tokens,
                  (adapter, rank, at, count) -> {
                    gather(gy, out, from, width, at, count, rows);
                    Blas.product(
                        true,
                        false,
                        width,
                        rank,
                        count,
                        rows,
                        width,
                        at(z, (long) at * most),
                        most,
                        1,
                        at(memory, (long) from * all + bank.offset(adapter)),
                        all);
                  });
            }
          });
    }
  }

  /** Through the softmax over the chosen logits, into the gate and the input. */
  private void toGate(NDManager scope, NDArray own, float[] gw, NDArray gx) {
    int n = bank.bank().size();
    var gradient = Ops.zeros(scope, Dtype.F32, tokens, n);
    if (own != null) {
      Ops.copy(gradient, own.reshape(tokens, n));
    }
    var memory = Ops.memory(gradient);
    for (int token = 0; token < tokens; token++) {
      int first = token * topK;
      double mean = 0;
      for (int pair = first; pair < first + topK; pair++) {
        mean += chosen.weights()[pair] * gw[pair];
      }
      for (int pair = first; pair < first + topK; pair++) {
        long index = (long) token * n + chosen.indices()[pair];
        float change = (float) (chosen.weights()[pair] * (gw[pair] - mean));
        memory.setAtIndex(JAVA_FLOAT, index, memory.getAtIndex(JAVA_FLOAT, index) + change);
      }
    }
    var gate = bank.bank().gate();
    if (gx != null) {
      Blas.product(
          false, false, tokens, in, n, memory, n, Ops.memory(gate), in, 1, Ops.memory(gx), in);
    }
    if (HostTape.requiresGradient(gate)) {
      Blas.product(
          true,
          false,
          n,
          in,
          tokens,
          memory,
          n,
          Ops.memory(x),
          in,
          1,
          HostTape.gradientMemory(gate, scope),
          in);
    }
  }
}
