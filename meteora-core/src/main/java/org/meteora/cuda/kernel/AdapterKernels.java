package org.meteora.cuda.kernel;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;
import static java.lang.foreign.ValueLayout.JAVA_INT;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.IntStream;
import org.meteora.UserException;
import org.meteora.cuda.driver.CStruct.Count;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.DeviceMemory;
import org.meteora.cuda.driver.Shape;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.kernel.MatrixVector.Segment;
import org.meteora.nn.Scores;
import org.meteora.tensor.Dtype;

/**
 * The adapters' part of one to three gated linears that share their input, on somebody else's
 * tensors and stream: {@code y += Σ weight · scale · (x Aᵀ) Bᵀ} over the top-k adapters of each
 * token (paper, section 3.1). The base's product is cuBLAS's.
 *
 * <p>{@link #routeAndAdd} is for up to 16 tokens outside a {@code DecodeEngine}, in whose steps the
 * kernels of {@link DecodeLayerKernels} route and add instead: one product with all gates and A,
 * then one launch that routes and adds. {@link #scaleForPrefill} is for a prefill: behind one
 * product with all A and gates it turns z = x Aᵀ of all adapters into the weighted z, zero for
 * those not chosen, so that one matrix product with Bᵀ finishes each linear. {@link #grouped} is
 * for a prefill with many adapters.
 *
 * <p>Any rank 1…64 and unequal ranks, 0 where an adapter does not target a linear; up to 256
 * adapters, top-k up to 8. Not thread-safe; owns a few hundred KiB of device memory.
 */
public final class AdapterKernels implements AutoCloseable {
  /** The adapters of one linear with {@code out} outputs. */
  public record Target(AdapterMemory adapters, int out) {}

  /** Linears with one input at most. */
  static final int MAX_LINEARS = 3;

  record PrefillRouteAddAdapters(
      ProductOutput product,
      @Count(MAX_LINEARS) List<RoutedLinear> linear,
      @Count(MAX_LINEARS) long[] y) {}

  record ScaledLinear(
      long offsets,
      long scales,
      long indices,
      long weights,
      int at,
      int logitsAt,
      int n,
      int sumR) {}

  record PrefillRouteScaleZ(
      long rows,
      long tokens,
      long stride,
      long x,
      int k,
      float invTemperature,
      @Count(MAX_LINEARS) List<ScaledLinear> linear) {}

  /**
   * Training's choice of adapters, as a mask for the gates' softmax: 0 for the top k of a token, −∞
   * for the others; of equal logits the lower index counts as larger. Mirrors the struct of this
   * name in {@code gated.cuh}.
   *
   * @param logits (tokens, n), contiguous
   * @param mask float32 (tokens, n), contiguous; is written
   */
  public record TrainingTopKMask(long logits, long mask, long tokens, int n) {}

  private final Cuda cuda;
  private final Kernels kernels;
  private final List<Target> targets;
  private final int in;
  private final MatrixVector.Tuning tuning = MatrixVector.Tuning.standard();
  private final List<long[]> arrays = new ArrayList<>();
  private final Map<Integer, MatrixVector> products = new HashMap<>();
  private final Arena host = Arena.ofShared();
  private final MemorySegment temperatureOnHost = host.allocate(4, 16);
  private DeviceMemory memory;
  private DeviceMemory scratch; // of few tokens, from their first on
  private final long inverseTemperature;
  private final int gates; // of all linears
  private final int ranks; // of all linears
  private final GroupedPrefill grouped;
  private double temperature = Double.NaN;

  /**
   * @param targets one to three linears sharing an input of {@code in} elements
   * @param scores what adapters are chosen by
   * @throws UserException for more adapters, larger ranks or a larger top-k than the kernels know
   */
  public AdapterKernels(
      Cuda cuda,
      Dtype dtype,
      Scores scores,
      int topK,
      int in,
      List<Target> targets,
      Stream stream) {
    if (targets.isEmpty() || targets.size() > MAX_LINEARS) {
      throw new IllegalArgumentException(targets.size() + " linears");
    }
    try {
      this.cuda = cuda;
      this.targets = List.copyOf(targets);
      this.in = in;
      targets.forEach(t -> t.adapters().check(topK));
      var maxAdapters = targets.stream().mapToInt(t -> t.adapters().count()).max().orElseThrow();
      this.kernels =
          Kernels.of(cuda, Kernels.Constants.ofLayers(dtype, topK, maxAdapters).with(scores));
      this.gates = targets.stream().mapToInt(t -> t.adapters().gateRows()).sum();
      this.ranks = targets.stream().mapToInt(t -> t.adapters().sumOfRanks()).sum();
      var words = targets.stream().mapToLong(t -> 2L * t.adapters().count() + 1).sum();
      this.memory = cuda.allocate(4 * (1 + words));
      this.inverseTemperature = memory.address();
      upload(memory.address() + 4, words, stream);
      this.grouped = new GroupedPrefill(kernels, this.targets, arrays, in);
    } catch (RuntimeException | Error e) {
      close();
      throw e;
    }
  }

  /** Queues a copy of offsets and scales of all linears, which nobody waits for. */
  private void upload(long to, long words, Stream stream) {
    var all = host.allocate(4 * words, 4);
    var at = 0L;
    for (var target : targets) {
      var offsets = target.adapters().offsets();
      var scales = target.adapters().scales();
      arrays.add(new long[] {to + at, to + at + 4L * offsets.length});
      MemorySegment.copy(offsets, 0, all, JAVA_INT, at, offsets.length);
      at += 4L * offsets.length;
      MemorySegment.copy(scales, 0, all, JAVA_FLOAT, at, scales.length);
      at += 4L * scales.length;
    }
    cuda.toDevice(to, all, at, stream);
  }

  /** For what the product of {@link #routeAndAdd} leaves, of any number of rows. */
  private long scratch() {
    if (scratch == null) {
      var most =
          IntStream.rangeClosed(1, MatrixVector.MAX_ROWS)
              .map(rows -> product(rows).slots() * rows)
              .max()
              .orElseThrow();
      scratch = cuda.allocate(4L * most * Math.max(1, gates + ranks));
    }
    return scratch.address();
  }

  private MatrixVector product(int rows) {
    return products.computeIfAbsent(
        rows,
        m -> {
          var segments = new ArrayList<Segment>();
          var all = targets.stream().map(Target::adapters).toList();
          all.forEach(each -> segments.add(new Segment(each.gate(), each.gateRows())));
          all.forEach(each -> segments.add(new Segment(each.a(), each.sumOfRanks())));
          segments.removeIf(s -> s.rows() == 0);
          return new MatrixVector(kernels, segments, in, m, tuning);
        });
  }

  /**
   * Adds the adapters' part to a decode step's rows; any number works, {@link
   * MatrixVector#MAX_ROWS} at a time.
   *
   * @param x (tokens, in), contiguous, in the dtype; 16-byte aligned for speed
   * @param y per linear, (tokens, out), contiguous, holding the base product
   * @param choices per linear, where the choice goes: int32 indices (tokens, topK), behind them
   *     float32 weights in the same layout; or null
   */
  public void routeAndAdd(
      long x, long[] y, int tokens, long[] choices, double temperature, Stream stream) {
    temperature(temperature, stream);
    var bytes = kernels.constants().dtype().bytes();
    var scratch = scratch();
    for (var at = 0; at < tokens; at += MatrixVector.MAX_ROWS) {
      var rows = Math.min(MatrixVector.MAX_ROWS, tokens - at);
      var ld = gates + ranks;
      var product = product(rows);
      cuda.fill(scratch, 0, 4L * product.slots() * rows * ld, stream);
      var input = x + (long) at * in * bytes;
      product.launch(input, scratch, ld, 0, 0, 0, 0).on(stream);
      var output =
          ProductOutput.of(scratch, inverseTemperature, product.slots(), ld, rows, input, in);
      var linears = new ArrayList<RoutedLinear>();
      var addresses = new long[targets.size()];
      var widest = 1;
      var gateAt = 0;
      var zAt = gates;
      for (var i = 0; i < targets.size(); i++) {
        var adapters = targets.get(i).adapters();
        var out = targets.get(i).out();
        linears.add(
            new RoutedLinear(
                adapters.b(),
                0,
                arrays.get(i)[0],
                arrays.get(i)[1],
                indices(choices, i, at),
                weights(choices, i, tokens, at),
                0,
                gateAt,
                zAt,
                adapters.count(),
                out,
                out % 4 == 0 && adapters.b() % 16 == 0));
        gateAt += adapters.gateRows();
        zAt += adapters.sumOfRanks();
        addresses[i] = y[i] + (long) at * out * bytes;
        widest = Math.max(widest, out);
      }
      kernels.run(
          KernelName.PREFILL_ROUTE_ADD_ADAPTERS,
          Shape.of((widest + 63) / 64, rows, targets.size(), 32).withOverlap(tuning.overlap()),
          new PrefillRouteAddAdapters(output, linears, addresses),
          stream);
    }
  }

  /** Where the chosen indices go from token {@code from} on; 0: nowhere. */
  private long indices(long[] choices, int linear, long from) {
    return choices == null ? 0 : choices[linear] + 4 * kernels.constants().topK() * from;
  }

  /** Where their weights go, behind the indices of all tokens. */
  private long weights(long[] choices, int linear, long tokens, long from) {
    return choices == null ? 0 : indices(choices, linear, tokens + from);
  }

  /**
   * Columns of the matrix of {@link #scaleForPrefill}: all linears' z, all their gates' logits, and
   * so many unused ones that a row is whole 16 bytes in every dtype.
   *
   * @param adaptersAndRanks N + Σr of all linears
   */
  public static int columns(int adaptersAndRanks) {
    return (adaptersAndRanks + 7) / 8 * 8;
  }

  /**
   * For a prefill: scales z by weight · scale where its adapter is chosen, and clears it elsewhere,
   * in place.
   *
   * @param rows (tokens, {@link #columns}), contiguous: z of each linear, then the logits of each
   * @param x (tokens, in), contiguous, what they were made from
   * @param choices as for decode
   * @param temperature routing temperature T; 1 gives training's weights
   */
  public void scaleForPrefill(
      long rows, long x, long tokens, long[] choices, double temperature, Stream stream) {
    if (tokens == 0) {
      return;
    }
    var linears =
        scaledLinears(targets, arrays, kernels.constants().topK(), tokens, choices, ranks);
    var stride = columns(gates + ranks);
    kernels.run(
        KernelName.PREFILL_ROUTE_SCALE_Z,
        Shape.of(Math.toIntExact((tokens + 7) / 8), targets.size(), 1, 256),
        new PrefillRouteScaleZ(rows, tokens, stride, x, in, (float) (1 / temperature), linears),
        stream);
  }

  /**
   * The linears for a kernel that chooses for many tokens.
   *
   * @param arrays per linear, where offsets and scales of its adapters are
   * @param choices as for {@link #routeAndAdd}
   * @param logitsFrom of a row: where logits begin, behind z of each linear, if there
   */
  static List<ScaledLinear> scaledLinears(
      List<Target> targets,
      List<long[]> arrays,
      int topK,
      long tokens,
      long[] choices,
      int logitsFrom) {
    var linears = new ArrayList<ScaledLinear>();
    var at = 0;
    var logitsAt = logitsFrom;
    for (var i = 0; i < targets.size(); i++) {
      var adapters = targets.get(i).adapters();
      var chosen = choices == null ? 0 : choices[i];
      linears.add(
          new ScaledLinear(
              arrays.get(i)[0],
              arrays.get(i)[1],
              chosen,
              chosen == 0 ? 0 : chosen + 4 * topK * tokens,
              at,
              logitsAt,
              adapters.count(),
              adapters.sumOfRanks()));
      at += adapters.sumOfRanks();
      logitsAt += adapters.gateRows();
    }
    return linears;
  }

  /** The same for a prefill with many adapters: of each token only those that it chose. */
  public GroupedPrefill grouped() {
    return grouped;
  }

  private void temperature(double value, Stream stream) {
    if (value != temperature) {
      stream.synchronize();
      temperatureOnHost.set(JAVA_FLOAT, 0, (float) (1 / value));
      cuda.toDevice(inverseTemperature, temperatureOnHost, 4, stream);
      stream.synchronize();
      temperature = value;
    }
  }

  @Override
  public void close() {
    for (var each : new DeviceMemory[] {memory, scratch}) {
      if (each != null) {
        each.close();
      }
    }
    host.close();
  }
}
