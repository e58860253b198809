package org.meteora.backend.cuda;

import ai.djl.ndarray.NDArray;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.UUID;
import org.meteora.UserException;
import org.meteora.cuda.driver.Cublas.Matrix;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.kernel.AdapterKernels;
import org.meteora.cuda.kernel.AdapterMemory;
import org.meteora.cuda.kernel.GroupedPrefill;
import org.meteora.cuda.kernel.SummedProducts.Sum;
import org.meteora.cuda.kernel.SummedProducts.Term;
import org.meteora.cuda.kernel.TrainingKernels.Dropout;
import org.meteora.moe.BankLayout;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.Router;
import org.meteora.moe.ScoredBank;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * The adapters of gated linears with one input by CUDA kernels of our own, at inference, on
 * libtorch's stream: for up to {@link org.meteora.cuda.kernel.MatrixVector#MAX_ROWS} tokens one
 * product with all gates and A and one launch that routes and adds; for more, the linears as a
 * whole: a product with all gates and A, a launch that masks z = x Aᵀ, products with B, or, with
 * many adapters, those alone that each token chose; and the base's products, which add. Its device
 * memory goes with the manager of the adapters. Its scratch serves one pass at a time: what a pass
 * queues is queued under its lock, on one stream.
 */
final class FusedInference implements AutoCloseable {
  private final List<GatedLinear> linears;
  private final Router.Scoring router;
  private final List<ScoredBank> banks;
  private final Products products;
  private final NDArray stacked;
  private final boolean ownsStack;

  /** Where each linear's A begins in the stack, and behind all A each one's gate. */
  private final int[] rankAt;

  private final int[] gateAt;
  private final long[] loraB;
  private final AdapterKernels kernels;
  private final Cuda cuda;
  private final String id = UUID.randomUUID().toString();
  private boolean closed;

  /**
   * @param linears one to three with adapters, on a CUDA device
   * @param stacked their A and gates, as {@link BankLayout#stack} laid them; null: make such a one
   * @throws UserException for what the kernels do not know
   */
  FusedInference(
      List<GatedLinear> linears,
      Router.Scoring router,
      Products products,
      NDArray stacked,
      int topK) {
    for (var linear : linears) {
      if (!Ops.isRowMajor(linear.weight())) {
        throw new UserException("weights that do not lie row by row");
      }
    }
    products.open();
    this.linears = linears;
    this.products = products;
    this.router = router;
    this.banks = linears.stream().map(router::forKernels).toList();
    this.rankAt = GivenChoice.firstRanks(linears);
    this.gateAt = new int[linears.size() + 1];
    gateAt[0] = linears.stream().mapToInt(linear -> linear.bank().totalRank()).sum();
    for (int i = 0; i < linears.size(); i++) {
      gateAt[i + 1] = gateAt[i] + gateRows(i);
    }
    this.ownsStack = stacked == null;
    this.stacked = ownsStack ? stack() : stacked;
    this.loraB = addressesOfB();
    int in = (int) this.stacked.getShape().get(1);
    cuda = Cuda.device(this.stacked.getDevice().getDeviceId());
    cuda.makeCurrent();
    long first = Ops.dataPointer(this.stacked);
    long row = (long) in * Ops.dtype(this.stacked).bytes();
    var targets = new ArrayList<AdapterKernels.Target>();
    for (int i = 0; i < loraB.length; i++) {
      var bank = linears.get(i).bank();
      targets.add(
          new AdapterKernels.Target(
              new AdapterMemory(
                  gateRows(i) == 0 ? 0 : first + row * gateAt[i],
                  first + row * rankAt[i],
                  loraB[i],
                  bank.ranks(),
                  banks.get(i).scales()),
              (int) linears.get(i).weight().getShape().get(0)));
    }
    var scores = banks.getFirst().scores();
    try {
      kernels =
          new AdapterKernels(
              cuda, Ops.dtype(this.stacked), scores, topK, in, targets, Stream.LIBTORCH);
    } catch (RuntimeException | Error e) {
      closeStack();
      throw e;
    }
    this.stacked.getManager().attachInternal(id, this);
  }

  /** As {@link BankLayout#stack} does, of copies. */
  private NDArray stack() {
    var linear = linears.getFirst();
    var manager = linear.bank().loraA().getManager();
    var dtype = Ops.dtype(linear.weight());
    int rows = AdapterKernels.columns(gateAt[linears.size()]);
    var all = Ops.zeros(manager, dtype, rows, linear.weight().getShape().get(1));
    for (int i = 0; i < linears.size(); i++) {
      copy(banks.get(i).loraA(), all, rankAt[i]);
      if (gateRows(i) > 0) {
        copy(banks.get(i).gate(), all, gateAt[i]);
      }
    }
    return all;
  }

  private static void copy(NDArray rows, NDArray to, int first) {
    try (var view = Ops.narrow(to, 0, first, rows.getShape().get(0))) {
      Ops.copy(view, rows);
    }
  }

  private int gateRows(int linear) {
    return banks.get(linear).gate() == null ? 0 : linears.get(linear).bank().size();
  }

  private long[] addressesOfB() {
    var addresses = new long[linears.size()];
    for (int i = 0; i < addresses.length; i++) {
      addresses[i] = Ops.dataPointer(router.forKernels(linears.get(i)).loraBTransposed());
    }
    return addresses;
  }

  /** Whether this is for B as it is now. */
  boolean isCurrent() {
    return Arrays.equals(loraB, addressesOfB());
  }

  /**
   * Adds the adapters' part for few tokens.
   *
   * @param x {@code (tokens, in)}
   * @param y each linear's base product, {@code (tokens, out)} in memory; changed
   * @param choices as {@link AdapterKernels#routeAndAdd} takes them
   */
  synchronized void routeAndAdd(NDArray x, List<NDArray> y, double temperature, long[] choices) {
    cuda.makeCurrent();
    try (var rows = Ops.contiguous(x)) {
      kernels.routeAndAdd(
          Ops.dataPointer(rows),
          addresses(y),
          (int) x.getShape().get(0),
          choices,
          temperature,
          Stream.LIBTORCH);
    }
  }

  /**
   * The linears' results for many tokens.
   *
   * @param y per linear, {@code (…, out)}
   * @param logits a row a token, of which {@link #logits} are
   */
  record Results(List<NDArray> y, NDArray logits, int gatesAt) {}

  /**
   * The linears with their adapters, for many tokens.
   *
   * @param x {@code (…, in)}
   * @param choices as for few
   */
  synchronized Results forward(NDArray x, double temperature, long[] choices) {
    cuda.makeCurrent();
    if (Ops.dtype(x) != dtype()) {
      throw new IllegalArgumentException("an input in " + Ops.dtype(x) + ", not " + dtype());
    }
    int tokens = (int) (x.size() / in());
    boolean groups = kernels.grouped().isQuicker(tokens);
    int gatesAt = groups ? 0 : gateAt[0];
    var y = linears.stream().map(linear -> empty(x, linear)).toList();
    NDArray rows;
    try (var input = Ops.contiguous(x)) {
      var matrix = Matrix.of(Ops.dataPointer(input), tokens, in(), dtype());
      rows = rows(x, matrix, groups);
      if (groups) {
        long words = (kernels.grouped().scratchBytes(tokens) + 7) / 8;
        try (var scratch = Ops.empty(x.getManager(), Dtype.I64, words)) {
          var pass =
              new GroupedPrefill.Pass(
                  Ops.dataPointer(rows),
                  (int) rows.getShape().get(1),
                  matrix.address(),
                  tokens,
                  choices,
                  temperature,
                  Ops.dataPointer(scratch));
          kernels.grouped().group(pass, Stream.LIBTORCH);
          kernels.grouped().add(pass, addresses(y), Stream.LIBTORCH);
        }
      } else {
        kernels.scaleForPrefill(
            Ops.dataPointer(rows), matrix.address(), tokens, choices, temperature, Stream.LIBTORCH);
      }
      var sums = new ArrayList<Sum>();
      for (int i = 0; i < y.size(); i++) {
        sums.add(sum(matrix, rows, i, y.get(i), groups));
      }
      products.sum(sums, Dropout.NONE);
      for (int i = 0; i < y.size(); i++) {
        if (linears.get(i).bias() != null) {
          y.get(i).addi(linears.get(i).bias());
        }
      }
    }
    return new Results(y, rows, gatesAt);
  }

  private int in() {
    return (int) stacked.getShape().get(1);
  }

  private Dtype dtype() {
    return Ops.dtype(stacked);
  }

  private static long[] addresses(List<NDArray> arrays) {
    return arrays.stream().mapToLong(Ops::dataPointer).toArray();
  }

  private static NDArray empty(NDArray x, GatedLinear linear) {
    var shape = GatedLinear.withLast(x.getShape(), linear.weight().getShape().get(0));
    return Ops.empty(x.getManager(), Ops.dtype(x), shape.getShape());
  }

  /** {@code x · [A gates]ᵀ}, or of the gates alone. */
  private NDArray rows(NDArray x, Matrix input, boolean gatesAlone) {
    int from = gatesAlone ? gateAt[0] : 0;
    int columns = (int) stacked.getShape().get(0) - from;
    var rows = Ops.empty(x.getManager(), dtype(), input.rows(), columns);
    long first = Ops.dataPointer(stacked) + (long) dtype().bytes() * from * in();
    products.multiply(
        Matrix.of(Ops.dataPointer(rows), input.rows(), columns, dtype()),
        input,
        Matrix.of(first, columns, in(), dtype()).transpose(),
        false);
    return rows;
  }

  /** {@code y = z · Bᵀ + x · Wᵀ}, or that with adapters that are there. */
  private Sum sum(Matrix input, NDArray rows, int linear, NDArray y, boolean begun) {
    int tokens = input.rows();
    int out = (int) (y.size() / tokens);
    var weight = Matrix.of(Ops.dataPointer(linears.get(linear).weight()), out, in(), dtype());
    var base = new Term(input, weight.transpose());
    var to = Matrix.of(Ops.dataPointer(y), tokens, out, dtype());
    if (begun) {
      return new Sum(to, true, List.of(base));
    }
    int stride = (int) rows.getShape().get(1);
    int ranks = linears.get(linear).bank().totalRank();
    long z = Ops.dataPointer(rows) + (long) dtype().bytes() * rankAt[linear];
    // first: what is there costs the long product nothing
    var adapters =
        new Term(
            new Matrix(z, tokens, ranks, stride, dtype()),
            Matrix.of(loraB[linear], ranks, out, dtype()));
    return new Sum(to, false, List.of(adapters, base));
  }

  /** A linear's logits {@code (tokens, N)}, a view. */
  NDArray logits(Results results, int linear) {
    return Ops.narrow(
        results.logits(),
        1,
        results.gatesAt() + gateAt[linear] - gateAt[0],
        linears.get(linear).bank().size());
  }

  @Override
  public void close() {
    if (!closed) {
      closed = true;
      stacked.getManager().detachInternal(id);
      kernels.close();
      closeStack();
    }
  }

  private void closeStack() {
    if (ownsStack) {
      stacked.close();
    }
  }
}
