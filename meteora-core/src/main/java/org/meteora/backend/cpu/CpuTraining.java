package org.meteora.backend.cpu;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import org.meteora.moe.BankLayout;
import org.meteora.moe.Choice;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.Gate;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.Router;
import org.meteora.tensor.Blas;
import org.meteora.tensor.Blas.Matrix;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;
import org.meteora.tensor.Workers;

/**
 * One layer with adapters in one training pass on {@link CpuTape}: forward, what backward needs of
 * it, and backward. A gate chooses, or somebody else has chosen: the only adapter there is, or one
 * for each sample. The (token, adapter) pairs are sorted by adapter; rows of the pairs of one
 * adapter are gathered, a few dozen at a time, and go to the BLAS. Where an adapter's tokens follow
 * one another, as all do of an only adapter, their rows are used where they lie.
 *
 * <pre>
 * z = A_i x̃ (x̃: what dropout keeps of x; s takes its 1 / (1 − p) in),   y += w s B_i z
 * ∂B_i = ∂y (w s z)ᵀ,   ∂z = w s B_iᵀ ∂y,   ∂A_i = ∂z x̃ᵀ,   ∂x̃ += A_iᵀ ∂z,   ∂w = s z · B_iᵀ ∂y
 * </pre>
 *
 * <p>Threads share work by tokens where rows are added to, and by columns where the adapters'
 * gradients are: no two write the same number, and the sums' order depends on the number of threads
 * alone.
 *
 * <p>Long, because forward and backward share what the pass keeps, and are read side by side.
 */
final class CpuTraining {
  /** Rows gathered at once: as many as stay in the second-level cache. */
  private static final int ROWS = 64;

  /** Rows used at once where they lie. */
  private static final int RUN = 512;

  private final GatedLinear layer;
  private final BankLayout bank;
  private final int tokens;
  private final int in;
  private final int out;
  private final int topK;
  private final int maxRank;
  private final CpuInput input;
  private final NDArray x;
  private final NDArray logits;
  private final NDArray y;
  private final MemorySegment memoryA;

  /** {@code (Σr, out)}: rows that lie together, for the BLAS both ways. */
  private final MemorySegment transposedB;

  private final Choice chosen;
  private final int[] starts;
  private final int[] order;
  private final MemorySegment z;

  CpuTraining(
      GatedLinear layer, NDManager manager, NDArray array, CpuInput input, ForwardContext context) {
    this.layer = layer;
    this.input = input;
    bank = layer.layout();
    bank.parametersMayChange();
    var shape = array.getShape();
    in = (int) shape.get(shape.dimension() - 1);
    out = (int) layer.weight().getShape().get(0);
    tokens = (int) (shape.size() / in);
    x = Ops.contiguous(array).reshape(tokens, in);
    x.attach(manager);
    var outer = Arrays.copyOf(shape.getShape(), shape.dimension());
    outer[outer.length - 1] = out;
    y = Ops.linear(x, layer.weight(), layer.bias()).reshape(Ops.shape(outer));
    if (layer.router(context) instanceof Router.Fixed fixed) {
      logits = null;
      chosen = fixed.choose(layer, x, GatedLinear.batchRows(shape));
      topK = chosen.topK();
    } else {
      outer[outer.length - 1] = bank.bank().size();
      logits = Ops.empty(manager, Dtype.F32, outer);
      topK = layer.topK(context);
      chosen = new Choice(tokens, topK);
      var memoryX = Ops.memory(x);
      var memoryG = Ops.memory(bank.bank().gate());
      var memoryL = Ops.memory(logits);
      Workers.share(tokens, (from, to) -> route(from, to, memoryX, memoryG, memoryL));
    }
    layer.report(context, chosen, shape);
    maxRank = Math.max(1, bank.bank().maxRank());
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
    z = Ops.memory(Ops.empty(manager, Dtype.F32, order.length, maxRank));
    try (var view = Ops.transpose(bank.loraB(), 0, 1)) {
      transposedB = Ops.memory(Ops.copyOf(view, manager, Dtype.F32));
    }
    memoryA = Ops.memory(bank.loraA());
    var memoryY = Ops.memory(y);
    var kept = input.kept(Ops.memory(x), tokens, in);
    Workers.share(tokens, (from, to) -> forward(from, to, kept, memoryY));
  }

  public NDArray result() {
    return y;
  }

  /** Of the gate; null where somebody else has chosen. */
  public NDArray logits() {
    return logits;
  }

  public long[] inputShape() {
    return new long[] {tokens, in};
  }

  private static void byColumns(int columns, Workers.Range range) {
    int lines = (columns + 15) / 16; // whole cache lines
    Workers.share(lines, (from, to) -> range.run(16 * from, Math.min(columns, 16 * to)));
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

  /**
   * Pieces of at most {@link #ROWS} pairs of one adapter, of tokens {@code from} to {@code to}, or
   * of {@link #RUN} that follow one another.
   */
  private void pieces(int from, int to, Piece piece) {
    for (int adapter = 0; adapter < bank.bank().size(); adapter++) {
      int rank = bank.rank(adapter);
      if (rank > 0) {
        int end = position(adapter, to);
        int count;
        for (int at = position(adapter, from); at < end; at += count) {
          count = Math.min(RUN, end - at);
          if (!isRun(at, count)) {
            count = Math.min(ROWS, count);
          }
          piece.run(adapter, rank, at, count);
        }
      }
    }
  }

  /** Whether the tokens of these pairs of one adapter follow one another. */
  private boolean isRun(int at, int count) {
    return order[at + count - 1] / topK - order[at] / topK == count - 1;
  }

  static MemorySegment at(MemorySegment matrix, long index) {
    return matrix.asSlice(index * Float.BYTES);
  }

  private static MemorySegment scratch(Arena arena, int rows, int columns) {
    return arena.allocate((long) rows * columns * Float.BYTES, 64);
  }

  /**
   * Columns {@code first} … of the rows of some pairs' tokens.
   *
   * @param room takes them, one row after another, unless they can be used where they lie
   */
  private Matrix rows(Matrix matrix, int first, int width, int at, int count, MemorySegment room) {
    int columns = matrix.stride();
    if (isRun(at, count)) {
      long start = (long) (order[at] / topK) * columns + first;
      return new Matrix(at(matrix.memory(), start), columns);
    }
    long bytes = (long) width * Float.BYTES;
    for (int i = 0; i < count; i++) {
      long start = (long) (order[at + i] / topK) * columns + first;
      MemorySegment.copy(matrix.memory(), start * Float.BYTES, room, i * bytes, bytes);
    }
    return new Matrix(room, width);
  }

  /**
   * {@code C = X Mᵀ} with few rows of M: C {@code (count, rank)}, X {@code (count, width)}, M
   * {@code (rank, width)}. As Cᵀ, since the BLAS does best when its result has long rows.
   */
  private static void narrow(
      Matrix x, Matrix m, int rank, int count, MemorySegment room, Matrix c) {
    Blas.product(rank, count, m.stride(), m, x.transpose(), 0, new Matrix(room, count));
    for (int i = 0; i < count; i++) {
      for (int r = 0; r < rank; r++) {
        float value = room.getAtIndex(JAVA_FLOAT, (long) r * count + i);
        c.memory().setAtIndex(JAVA_FLOAT, (long) i * c.stride() + r, value);
      }
    }
  }

  /**
   * Adds {@code Z M} to the rows of some pairs' tokens in a matrix {@code (tokens, width)}.
   *
   * @param z {@code (count, rank)}
   * @param m {@code (rank, width)}
   * @param room for as many results as are gathered at once
   */
  private void addProduct(
      Matrix z, int rank, Matrix m, int at, int count, MemorySegment room, MemorySegment matrix) {
    boolean run = isRun(at, count);
    int width = m.stride();
    var to = new Matrix(run ? at(matrix, (long) (order[at] / topK) * width) : room, width);
    Blas.product(count, width, rank, z, m, run ? 1 : 0, to);
    for (int i = 0; i < count && !run; i++) {
      long token = order[at + i] / topK;
      Blas.add(width, 1, at(room, (long) i * width), at(matrix, token * width));
    }
  }

  /** An adapter's rows of A. */
  private Matrix ownA(int adapter) {
    return new Matrix(at(memoryA, bank.offset(adapter) * in), in);
  }

  /** An adapter's rows of Bᵀ. */
  private Matrix ownB(int adapter) {
    return new Matrix(at(transposedB, bank.offset(adapter) * out), out);
  }

  private float scale(int adapter) {
    return (float) (bank.bank().scales()[adapter] * input.scale());
  }

  private float factor(int pair, int adapter) {
    return chosen.weights()[pair] * scale(adapter);
  }

  private void route(int from, int to, MemorySegment x, MemorySegment gate, MemorySegment logits) {
    int n = bank.bank().size();
    try (var arena = Arena.ofConfined()) {
      var rows = new Matrix(at(x, (long) from * in), in);
      var room = scratch(arena, n, to - from);
      var own = new Matrix(at(logits, (long) from * n), n);
      narrow(rows, new Matrix(gate, in), n, to - from, room, own);
    }
    Gate.choose(logits, n, chosen, from, to, 1);
  }

  private void forward(int from, int to, MemorySegment x, MemorySegment y) {
    try (var arena = Arena.ofConfined()) {
      var rows = scratch(arena, ROWS, in);
      var results = scratch(arena, ROWS, out);
      var narrow = scratch(arena, RUN, maxRank);
      pieces(
          from,
          to,
          (adapter, rank, at, count) -> {
            var own = at(z, (long) at * maxRank);
            var ownRows = rows(new Matrix(x, in), 0, in, at, count, rows);
            narrow(ownRows, ownA(adapter), rank, count, narrow, new Matrix(own, maxRank));
            for (int i = 0; i < count; i++) {
              float factor = factor(order[at + i], adapter);
              for (int r = 0; r < rank; r++) {
                float value = own.getAtIndex(JAVA_FLOAT, (long) i * maxRank + r);
                narrow.setAtIndex(JAVA_FLOAT, (long) i * maxRank + r, factor * value);
              }
            }
            var scaled = new Matrix(narrow, maxRank);
            addProduct(scaled, rank, ownB(adapter), at, count, results, y);
          });
    }
  }

  /**
   * Backward: adds to the gradients of gate, A and B where they are wanted, and to {@code gx}.
   *
   * @param scope for what is needed on the way
   * @param gy ∂y {@code (…, out)}
   * @param ownLogits the gradient of the logits from elsewhere {@code (…, N)}, or null; undefined
   *     afterwards
   * @param gx ∂x {@code (tokens, in)} to add to, or null; ∂x̃ is left with the input
   * @param first whether {@code gx} is undefined, and to be written instead of added to
   */
  public void backward(NDManager scope, NDArray gy, NDArray ownLogits, NDArray gx, boolean first) {
    var memoryY = Ops.memory(gy);
    var memoryGx = gx == null ? null : Ops.memory(gx);
    if (gx != null) {
      var weight = new Matrix(Ops.memory(layer.weight()), in);
      var result = new Matrix(memoryGx, in);
      Blas.product(tokens, in, out, new Matrix(memoryY, out), weight, first ? 0 : 1, result);
    }
    var weightGradients = new float[order.length];
    var gz = Ops.memory(Ops.empty(scope, Dtype.F32, order.length, maxRank));
    var kept = wantsA() ? input.kept(Ops.memory(x), tokens, in) : null;
    var toInput = input.gradient(memoryGx, tokens, in);
    if (logits != null && ownLogits == null) {
      ownLogits = Ops.zeros(scope, Dtype.F32, tokens, bank.bank().size());
    }
    // added up in what came from elsewhere, which nobody else needs
    var gl = logits == null ? null : Ops.memory(ownLogits);
    Workers.share(
        tokens,
        (from, to) -> {
          toInput(from, to, memoryY, toInput, gz, weightGradients);
          if (gl != null) {
            throughGate(from, to, weightGradients, gl, memoryGx);
          }
        });
    toGateAndA(scope, kept, gl, gz);
    toB(scope, memoryY);
  }

  /** ∂z, ∂w and ∂x̃ of some tokens; z becomes w s z, which is what ∂B needs. */
  private void toInput(
      int from, int to, MemorySegment gy, MemorySegment gx, MemorySegment gz, float[] gw) {
    try (var arena = Arena.ofConfined()) {
      var rows = scratch(arena, ROWS, out);
      var results = scratch(arena, ROWS, in);
      var narrow = scratch(arena, RUN, maxRank);
      pieces(
          from,
          to,
          (adapter, rank, at, count) -> {
            var own = new Matrix(at(gz, (long) at * maxRank), maxRank);
            var ownRows = rows(new Matrix(gy, out), 0, out, at, count, rows);
            narrow(ownRows, ownB(adapter), rank, count, narrow, own);
            float scale = scale(adapter);
            for (int i = 0; i < count; i++) {
              int pair = order[at + i];
              float factor = factor(pair, adapter);
              float dot = 0;
              for (int r = 0; r < rank; r++) {
                long index = (long) (at + i) * maxRank + r;
                float gradient = gz.getAtIndex(JAVA_FLOAT, index);
                float value = z.getAtIndex(JAVA_FLOAT, index);
                dot += gradient * value;
                gz.setAtIndex(JAVA_FLOAT, index, factor * gradient);
                z.setAtIndex(JAVA_FLOAT, index, factor * value);
              }
              gw[pair] = scale * dot;
            }
            if (gx != null) {
              addProduct(own, rank, ownA(adapter), at, count, results, gx);
            }
          });
    }
  }

  /** Of some tokens: through the softmax over the chosen logits, and from the logits to x. */
  private void throughGate(int from, int to, float[] gw, MemorySegment gl, MemorySegment gx) {
    int n = bank.bank().size();
    for (int token = from; token < to; token++) {
      int first = token * topK;
      double mean = 0;
      for (int pair = first; pair < first + topK; pair++) {
        mean += chosen.weights()[pair] * gw[pair];
      }
      for (int pair = first; pair < first + topK; pair++) {
        long index = (long) token * n + chosen.indices()[pair];
        float change = (float) (chosen.weights()[pair] * (gw[pair] - mean));
        gl.setAtIndex(JAVA_FLOAT, index, gl.getAtIndex(JAVA_FLOAT, index) + change);
      }
    }
    if (gx != null) {
      var gate = new Matrix(Ops.memory(bank.bank().gate()), in);
      var rows = new Matrix(at(gl, (long) from * n), n);
      Blas.product(to - from, in, n, rows, gate, 1, new Matrix(at(gx, (long) from * in), in));
    }
  }

  private boolean wantsA() {
    return bank.bank().totalRank() > 0 && CpuTape.requiresGradient(bank.loraA());
  }

  /**
   * @param kept x̃ {@code (tokens, in)}; null: A's gradient is not wanted
   * @param gl ∂logits {@code (tokens, N)}; null without a gate
   */
  private void toGateAndA(NDManager scope, MemorySegment kept, MemorySegment gl, MemorySegment gz) {
    var gate = bank.bank().gate();
    int n = bank.bank().size();
    var memoryX = Ops.memory(x);
    boolean wantsGate = gl != null && CpuTape.requiresGradient(gate);
    var gateGradient = wantsGate ? CpuTape.gradientMemory(gate, scope) : null;
    var gradient = kept != null ? CpuTape.gradientMemory(bank.loraA(), scope) : null;
    byColumns(
        in,
        (from, to) -> {
          int width = to - from;
          if (gateGradient != null) {
            var rows = new Matrix(at(memoryX, from), in);
            var own = new Matrix(at(gateGradient, from), in);
            Blas.product(n, width, tokens, new Matrix(gl, n).transpose(), rows, 1, own);
          }
          if (kept != null) {
            toA(from, width, kept, gz, gradient);
          }
        });
  }

  private void toA(int from, int width, MemorySegment x, MemorySegment gz, MemorySegment gradient) {
    try (var arena = Arena.ofConfined()) {
      var rows = scratch(arena, ROWS, width);
      pieces(
          0,
          tokens,
          (adapter, rank, at, count) -> {
            var own = rows(new Matrix(x, in), from, width, at, count, rows);
            var slopes = new Matrix(at(gz, (long) at * maxRank), maxRank).transpose();
            var to = new Matrix(at(gradient, bank.offset(adapter) * in + from), in);
            Blas.product(rank, width, count, slopes, own, 1, to);
          });
    }
  }

  /** As rows of ∂Bᵀ, which are long, one adapter after another: so the BLAS is at its best. */
  private void toB(NDManager scope, MemorySegment gy) {
    int all = bank.bank().totalRank();
    if (all == 0 || !CpuTape.requiresGradient(bank.loraB())) {
      return;
    }
    var gradient = CpuTape.gradientMemory(bank.loraB(), scope);
    byColumns(
        out,
        (from, to) -> {
          int width = to - from;
          try (var arena = Arena.ofConfined()) {
            var rows = scratch(arena, ROWS, width);
            var transposed = scratch(arena, maxRank, width);
            pieces(
                0,
                tokens,
                (adapter, rank, at, count) -> {
                  var own = rows(new Matrix(gy, out), from, width, at, count, rows);
                  var zs = new Matrix(at(z, (long) at * maxRank), maxRank).transpose();
                  Blas.product(rank, width, count, zs, own, 0, new Matrix(transposed, width));
                  long place = (long) from * all + bank.offset(adapter);
                  addTransposed(transposed, rank, width, gradient, place, all);
                });
          }
        });
  }

  /** Adds {@code (rows, columns)} to columns {@code place} … of a matrix of {@code all} columns. */
  private static void addTransposed(
      MemorySegment from, int rows, int columns, MemorySegment to, long place, int all) {
    for (int row = 0; row < rows; row++) {
      for (int column = 0; column < columns; column++) {
        long index = place + (long) column * all + row;
        float value = from.getAtIndex(JAVA_FLOAT, (long) row * columns + column);
        to.setAtIndex(JAVA_FLOAT, index, to.getAtIndex(JAVA_FLOAT, index) + value);
      }
    }
  }
}
