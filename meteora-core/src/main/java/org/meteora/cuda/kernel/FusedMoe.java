package org.meteora.cuda.kernel;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.meteora.UserException;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.DeviceMemory;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.driver.Struct;
import org.meteora.tensor.Dtype;

/**
 * The adapters' part of one to three gated linears that share their input, on somebody else's
 * tensors and stream: {@code y += Σ weight · scale · (x Aᵀ) Bᵀ} over the top-k adapters of each
 * token (paper, section 3.1). The base product is done before, by cuBLAS.
 *
 * <p>{@link #addFew} is for few tokens (decode): one product with all gates and A, then one launch
 * that routes and adds. {@link #maskMany} is for many (prefill): behind one product with all A and
 * gates it turns z = x Aᵀ of all adapters into the weighted z, zero for those not chosen, so that
 * one matrix product with Bᵀ finishes each linear.
 *
 * <p>Any rank 1…64 and unequal ranks, 0 where an adapter does not target a linear; up to 256
 * adapters, top-k up to 8. Not thread-safe; owns a few hundred KiB of device memory.
 */
public final class FusedMoe implements AutoCloseable {
  /** The adapters of one linear with {@code out} outputs. */
  public record Target(AdapterMemory adapters, int out) {}

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
   * @throws UserException for more adapters, larger ranks or a larger top-k than the kernels know
   */
  public FusedMoe(Cuda cuda, Dtype dtype, int topK, int in, List<Target> targets, Stream stream) {
    if (targets.isEmpty() || targets.size() > 3) {
      throw new IllegalArgumentException(targets.size() + " linears");
    }
    try {
      this.cuda = cuda;
      this.targets = List.copyOf(targets);
      this.in = in;
      targets.forEach(t -> t.adapters().check(topK));
      var most = targets.stream().mapToInt(t -> t.adapters().count()).max().orElseThrow();
      this.kernels = Kernels.of(cuda, Kernels.Constants.ofLayers(dtype, topK, most));
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
    return targets.stream().mapToInt(t -> t.adapters().count()).sum();
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
                      new MatrixVector.Segment(t.adapters().gate(), t.adapters().count())));
          targets.forEach(
              t ->
                  segments.add(
                      new MatrixVector.Segment(t.adapters().a(), t.adapters().sumOfRanks())));
          segments.removeIf(s -> s.rows() == 0);
          return new MatrixVector(kernels, segments, in, m, tuning);
        });
  }

  /**
   * Adds the adapters' part for few tokens; any number works, 16 at a time.
   *
   * @param x (tokens, in), contiguous, in the dtype; 16-byte aligned for speed
   * @param y per linear, (tokens, out), contiguous, holding the base product
   * @param choices per linear, where the choice goes: int32 indices (tokens, topK), behind them
   *     float32 weights in the same layout; or null
   * @param temperature routing temperature T
   */
  public void addFew(
      long x, long[] y, int tokens, long[] choices, double temperature, Stream stream) {
    temperature(temperature, stream);
    var bytes = kernels.constants().dtype().bytes();
    for (var at = 0; at < tokens; at += MatrixVector.MAX_ROWS) {
      var rows = Math.min(MatrixVector.MAX_ROWS, tokens - at);
      var product = product(rows);
      cuda.fill(scratch, 0, 4L * product.slots() * rows * ld, stream);
      product.launch(x + (long) at * in * bytes, scratch, ld, 0, 0, 0, 0).on(stream);
      var argument =
          new Struct()
              .add(scratch)
              .add(0L)
              .add(inverseTemperature)
              .add(0L)
              .add(0L)
              .add(product.slots())
              .add(ld)
              .add(rows)
              .add(0);
      var gateAt = 0;
      var zAt = gates();
      for (var i = 0; i < 3; i++) {
        if (i >= targets.size()) {
          argument.skip(72);
          continue;
        }
        var adapters = targets.get(i).adapters();
        var chosen = new Struct();
        choice(chosen, choices, i, tokens, at);
        argument.add(
            new Struct()
                .add(adapters.b())
                .add(0L)
                .add(arrays.get(i)[0])
                .add(arrays.get(i)[1])
                .add(chosen)
                .add(0)
                .add(gateAt)
                .add(zAt)
                .add(adapters.count())
                .add(targets.get(i).out())
                .add(targets.get(i).out() % 4 == 0 && adapters.b() % 16 == 0));
        gateAt += adapters.count();
        zAt += adapters.sumOfRanks();
      }
      var widest = 1;
      for (var i = 0; i < 3; i++) {
        argument.add(i < targets.size() ? y[i] + (long) at * targets.get(i).out() * bytes : 0L);
        widest = i < targets.size() ? Math.max(widest, targets.get(i).out()) : widest;
      }
      kernels
          .get("decode_route_add_adapters")
          .launch((widest + 63) / 64, rows, targets.size(), 32, 0, tuning.overlap(), argument)
          .on(stream);
    }
  }

  private void choice(Struct argument, long[] choices, int linear, int tokens, int from) {
    var values = (long) kernels.constants().topK();
    argument
        .add(choices == null ? 0 : choices[linear] + 4 * values * from)
        .add(choices == null ? 0 : choices[linear] + 4 * values * (tokens + from));
  }

  /**
   * Columns that a linear has in the matrix of {@link #maskMany}: z (Σr), the gate's logits (N),
   * and so many unused ones that a row of each linear's is whole 16 bytes in every dtype.
   */
  public static int columns(int adapters, int sumOfRanks) {
    return (adapters + sumOfRanks + 7) / 8 * 8;
  }

  /**
   * For many tokens: scales z by weight · scale where its adapter is chosen, and clears it
   * elsewhere, in place.
   *
   * @param rows (tokens, columns of all linears), contiguous, each linear's as {@link #columns}
   *     says
   * @param choices as for few
   * @param temperature routing temperature T; 1 gives training's weights
   */
  public void maskMany(long rows, long tokens, long[] choices, double temperature, Stream stream) {
    if (tokens == 0) {
      return;
    }
    var linears = new Struct();
    var at = 0;
    for (var i = 0; i < targets.size(); i++) {
      var adapters = targets.get(i).adapters();
      linears.add(arrays.get(i)[0]).add(arrays.get(i)[1]);
      choice(linears, choices, i, Math.toIntExact(tokens), 0);
      linears.add(at).add(adapters.count()).add(adapters.sumOfRanks()).add(0);
      at += columns(adapters.count(), adapters.sumOfRanks());
    }
    var argument =
        new Struct()
            .add(rows)
            .add(tokens)
            .add((long) at)
            .add((float) (1 / temperature))
            .add(0)
            .add(linears)
            .skip(48 * (3 - targets.size()));
    kernels
        .get("prefill_route_scale_z")
        .launch(Math.toIntExact((tokens + 7) / 8), targets.size(), 1, 256, 0, false, argument)
        .on(stream);
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
