package org.meteora.cuda.kernel;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.meteora.UserException;
import org.meteora.cuda.driver.CStruct.Count;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.DeviceMemory;
import org.meteora.cuda.driver.Shape;
import org.meteora.cuda.driver.Stream;
import org.meteora.nn.Scores;
import org.meteora.tensor.Dtype;

/**
 * The adapters' part of one to three gated linears that share their input, on somebody else's
 * tensors and stream: {@code y += Σ weight · scale · (x Aᵀ) Bᵀ} over the top-k adapters of each
 * token (paper, section 3.1). The base product is done before, by cuBLAS.
 *
 * <p>{@link #routeAndAdd} is for up to 16 tokens outside a {@code DecodeEngine}, in whose steps the
 * kernels of {@link DecodeLayerKernels} route and add instead: one product with all gates and A,
 * then one launch that routes and adds. {@link #scaleForPrefill} is for a prefill: behind one
 * product with all A and gates it turns z = x Aᵀ of all adapters into the weighted z, zero for
 * those not chosen, so that one matrix product with Bᵀ finishes each linear. {@link #group} and
 * {@link #addGrouped} are for a prefill with many adapters: behind a product with the gates alone
 * they multiply, of each token, only those that it chose.
 *
 * <p>Any rank 1…64 and unequal ranks, 0 where an adapter does not target a linear; up to 256
 * adapters, top-k up to 8. Not thread-safe; owns a few hundred KiB of device memory.
 */
public final class AdapterKernels implements AutoCloseable {
  /** The adapters of one linear with {@code out} outputs. */
  public record Target(AdapterMemory adapters, int out) {}

  /** Linears with one input at most. */
  private static final int MAX_LINEARS = 3;

  /** See {@link #groups}. */
  private static final int TOKENS_AN_ADAPTER = 4;

  private static final int RANKS_A_CHOSEN_ONE = 48;

  /** Mirrors the struct of this name in {@code gated.cuh}. */
  record DecodeRouteAddAdapters(
      ProductOutput product,
      @Count(MAX_LINEARS) List<RoutedLinear> linear,
      @Count(MAX_LINEARS) long[] y) {}

  /** Mirrors the struct of this name in {@code gated.cuh}. */
  record ScaledLinear(
      long offsets,
      long scales,
      long indices,
      long weights,
      int at,
      int logitsAt,
      int n,
      int sumR) {}

  /** Mirrors the struct of this name in {@code gated.cuh}. */
  record PrefillRouteScaleZ(
      long rows,
      long tokens,
      long stride,
      long x,
      int k,
      float invTemperature,
      @Count(MAX_LINEARS) List<ScaledLinear> linear) {}

  /** Mirrors the struct of this name in {@code grouped.cuh}. */
  record GroupedRoute(ScaledLinear linear, long chosen, long factors) {}

  /** Mirrors the struct of this name in {@code grouped.cuh}. */
  record PrefillRoute(
      long rows,
      long tokens,
      long stride,
      long x,
      int k,
      float invTemperature,
      @Count(MAX_LINEARS) List<GroupedRoute> linear) {}

  private final Cuda cuda;
  private final Kernels kernels;
  private final List<Target> targets;
  private final int in;
  private final MatrixVector.Tuning tuning = MatrixVector.Tuning.standard();
  private final List<DeviceMemory> owned = new ArrayList<>();
  private final List<long[]> arrays = new ArrayList<>();
  private final Map<Integer, MatrixVector> products = new HashMap<>();
  private final Arena host = Arena.ofShared();
  private final MemorySegment temperatureOnHost = host.allocate(4, 16);
  private final long inverseTemperature;
  private final long scratch;
  private final int ld;
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
      for (var target : targets) {
        var offsets = cuda.upload(target.adapters().offsets(), stream);
        var scales = cuda.upload(target.adapters().scales(), stream);
        owned.add(offsets);
        owned.add(scales);
        arrays.add(new long[] {offsets.address(), scales.address()});
      }
      this.ld = gates() + ranks();
      var floats = 0L;
      for (var rows = 1; rows <= MatrixVector.MAX_ROWS; rows++) {
        floats = Math.max(floats, (long) product(rows).slots() * rows * ld);
      }
      var memory = cuda.allocateZeroed(4 * floats + 16, stream);
      owned.add(memory);
      this.inverseTemperature = memory.address();
      this.scratch = memory.address() + 16;
    } catch (RuntimeException | Error e) {
      owned.forEach(DeviceMemory::close);
      host.close();
      throw e;
    }
  }

  private int gates() {
    return targets.stream().mapToInt(t -> t.adapters().gateRows()).sum();
  }

  private int ranks() {
    return targets.stream().mapToInt(t -> t.adapters().sumOfRanks()).sum();
  }

  private MatrixVector product(int rows) {
    return products.computeIfAbsent(
        rows,
        m -> {
          var segments = new ArrayList<MatrixVector.Segment>();
          targets.forEach(
              t ->
                  segments.add(
                      new MatrixVector.Segment(t.adapters().gate(), t.adapters().gateRows())));
          targets.forEach(
              t ->
                  segments.add(
                      new MatrixVector.Segment(t.adapters().a(), t.adapters().sumOfRanks())));
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
   * @param temperature routing temperature T
   */
  public void routeAndAdd(
      long x, long[] y, int tokens, long[] choices, double temperature, Stream stream) {
    temperature(temperature, stream);
    var bytes = kernels.constants().dtype().bytes();
    for (var at = 0; at < tokens; at += MatrixVector.MAX_ROWS) {
      var rows = Math.min(MatrixVector.MAX_ROWS, tokens - at);
      var product = product(rows);
      cuda.fill(scratch, 0, 4L * product.slots() * rows * ld, stream);
      product.launch(x + (long) at * in * bytes, scratch, ld, 0, 0, 0, 0).on(stream);
      var output =
          new ProductOutput(
              scratch,
              0,
              inverseTemperature,
              0,
              0,
              product.slots(),
              ld,
              rows,
              0,
              x + (long) at * in * bytes,
              0,
              in,
              0,
              0,
              0,
              0);
      var linears = new ArrayList<RoutedLinear>();
      var addresses = new long[targets.size()];
      var widest = 1;
      var gateAt = 0;
      var zAt = gates();
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
      kernels
          .launch(
              KernelName.DECODE_ROUTE_ADD_ADAPTERS,
              Shape.of((widest + 63) / 64, rows, targets.size(), 32).withOverlap(tuning.overlap()),
              new DecodeRouteAddAdapters(output, linears, addresses))
          .on(stream);
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
    var linears = scaledLinears(tokens, choices, ranks());
    kernels
        .launch(
            KernelName.PREFILL_ROUTE_SCALE_Z,
            Shape.of(Math.toIntExact((tokens + 7) / 8), targets.size(), 1, 256),
            new PrefillRouteScaleZ(
                rows,
                tokens,
                columns(gates() + ranks()),
                x,
                in,
                (float) (1 / temperature),
                linears))
        .on(stream);
  }

  /**
   * A prefill whose adapters are added by {@link GroupedAdapters}.
   *
   * @param logits (tokens, stride): those of each linear
   * @param x (tokens, in), contiguous, what they were made from
   * @param choices as for decode
   * @param temperature routing temperature T
   * @param scratch {@link #groupedBytes}
   */
  public record Grouped(
      long logits,
      int stride,
      long x,
      int tokens,
      long[] choices,
      double temperature,
      long scratch) {}

  /** Where one linear's things lie in a scratch. */
  record GroupedScratch(GroupedAdapters.TokenGroups groups, long factors, long z) {}

  /**
   * Whether {@link #group} is for so many tokens. What it costs goes with the ranks that a token
   * chooses, and with the tiles of 16 tokens, of which there are nearly as many as adapters where
   * tokens are few; what {@link #scaleForPrefill}'s way costs goes with all ranks. On an H100
   * (Llama-3-8B's linears, 2048 tokens, rank 8, top 2) this is quicker with 256 adapters and slower
   * with 28; between these the limit is by reckoning.
   */
  public boolean groups(int tokens) {
    int chosen = kernels.constants().topK() * GroupedAdapters.ranks(maxRank());
    int adapters = targets.getFirst().adapters().count();
    return tokens >= TOKENS_AN_ADAPTER * adapters
        && ranks() >= targets.size() * RANKS_A_CHOSEN_ONE * chosen
        && canGroup();
  }

  /** Whether the kernels of {@link #group} take these linears. */
  boolean canGroup() {
    return GroupedAdapters.isAvailable(cuda, kernels.constants().dtype())
        && gates() > 0
        && in % 32 == 0
        && targets.stream()
            .allMatch(
                t ->
                    t.out() % 8 == 0
                        && t.adapters().isAligned()
                        // places in B are counted in 32 bits, in bytes
                        && (long) t.adapters().sumOfRanks() * t.out() < 1L << 31);
  }

  GroupedAdapters grouped(int tokens) {
    return new GroupedAdapters(kernels, tokens, kernels.constants().maxAdapters(), maxRank());
  }

  private int maxRank() {
    return targets.stream().mapToInt(t -> t.adapters().maxRank()).max().orElseThrow();
  }

  private static long whole(long bytes) {
    return (bytes + 255) / 256 * 256;
  }

  private long groupedBytes(GroupedAdapters grouped, int tokens) {
    long perToken = whole(4L * kernels.constants().topK() * tokens);
    return 2 * perToken
        + whole(grouped.orderBytes())
        + whole(grouped.tileBytes())
        + whole(grouped.zBytes());
  }

  /** Bytes of scratch that {@link Grouped} names. */
  public long groupedBytes(int tokens) {
    return targets.size() * groupedBytes(grouped(tokens), tokens);
  }

  GroupedScratch scratch(GroupedAdapters grouped, Grouped pass, int target) {
    long at = pass.scratch() + target * groupedBytes(grouped, pass.tokens());
    long perToken = whole(4L * kernels.constants().topK() * pass.tokens());
    long order = at + 2 * perToken;
    long tile = order + whole(grouped.orderBytes());
    return new GroupedScratch(
        new GroupedAdapters.TokenGroups(at, arrays.get(target)[0], order, tile),
        at + perToken,
        tile + whole(grouped.tileBytes()));
  }

  /** Chooses, sorts the tokens by their choices, and leaves their z in the scratch. */
  public void group(Grouped pass, Stream stream) {
    var grouped = grouped(pass.tokens());
    var routes = new ArrayList<GroupedRoute>();
    var groups = new ArrayList<GroupedAdapters.TokenGroups>();
    var products = new ArrayList<GroupedAdapters.GroupedZ>();
    var linears = scaledLinears(pass.tokens(), pass.choices(), 0);
    for (int i = 0; i < targets.size(); i++) {
      var its = scratch(grouped, pass, i);
      routes.add(new GroupedRoute(linears.get(i), its.groups().chosen(), its.factors()));
      groups.add(its.groups());
      long a = targets.get(i).adapters().a();
      products.add(
          new GroupedAdapters.GroupedZ(its.groups(), pass.x(), a, its.factors(), its.z(), in));
    }
    kernels.run(
        KernelName.PREFILL_ROUTE,
        Shape.of((pass.tokens() + 7) / 8, targets.size(), 1, 256),
        new PrefillRoute(
            pass.logits(),
            pass.tokens(),
            pass.stride(),
            pass.x(),
            in,
            (float) (1 / pass.temperature()),
            routes),
        stream);
    grouped.group(groups, stream);
    grouped.z(products, stream);
  }

  private GroupedAdapters.GroupedRows rows(
      GroupedAdapters grouped, Grouped pass, int target, long y) {
    var its = scratch(grouped, pass, target);
    var linear = targets.get(target);
    return new GroupedAdapters.GroupedRows(
        its.groups(), linear.adapters().b(), its.z(), y, linear.out());
  }

  /**
   * Behind {@link #group}: what the adapters of each linear add.
   *
   * @param y per linear, (tokens, out), contiguous; is written
   */
  public void addGrouped(Grouped pass, long[] y, Stream stream) {
    var grouped = grouped(pass.tokens());
    var linears = new ArrayList<GroupedAdapters.GroupedRows>();
    for (int i = 0; i < y.length; i++) {
      linears.add(rows(grouped, pass, i, y[i]));
    }
    grouped.add(linears, stream);
  }

  /** In a row of z of each linear, if there, and then the logits of each. */
  private List<ScaledLinear> scaledLinears(long tokens, long[] choices, int logitsFrom) {
    var linears = new ArrayList<ScaledLinear>();
    var at = 0;
    var logitsAt = logitsFrom;
    for (var i = 0; i < targets.size(); i++) {
      var adapters = targets.get(i).adapters();
      linears.add(
          new ScaledLinear(
              arrays.get(i)[0],
              arrays.get(i)[1],
              indices(choices, i, 0),
              weights(choices, i, tokens, 0),
              at,
              logitsAt,
              adapters.count(),
              adapters.sumOfRanks()));
      at += adapters.sumOfRanks();
      logitsAt += adapters.gateRows();
    }
    return linears;
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
    owned.forEach(DeviceMemory::close);
    host.close();
  }
}
