package org.meteora.train.optim;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.List;
import org.meteora.model.OptimizerKernels;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;
import org.meteora.tensor.Workers;

/**
 * AdamW (Loshchilov and Hutter, 2019) on one flat buffer, as PyTorch computes it:
 *
 * <pre>
 * p ← p · (1 − lr · decay)
 * m ← β1 m + (1 − β1) g          v ← β2 v + (1 − β2) g²
 * p ← p − lr / (1 − β1ᵗ) · m / (√v / √(1 − β2ᵗ) + ε)
 * </pre>
 *
 * on this process's slice of it, with β1 = 0.9, β2 = 0.999, ε = 1e-8. On the CPU a step is one pass
 * in Java over the buffers' memory, on libtorch's threads. On a GPU it is one launch; where kernels
 * cannot be compiled it works through the buffers in pieces, so that its temporaries stay small.
 */
public final class AdamW implements AutoCloseable {
  private static final double BETA1 = 0.9;
  private static final double BETA2 = 0.999;
  private static final double EPSILON = 1e-8;
  private static final long PIECE = 1L << 24;

  /** On the CPU: numbers a thread takes at once. Sums' order depends on this alone. */
  private static final int TASK = 1 << 18;

  /** Of them, those in arrays at once: p, g, m and v stay in the first-level cache. */
  private static final int CHUNK = 1024;

  private final FlatParameters parameters;
  private final double weightDecay;
  private final NDManager manager;
  private final NDArray mean;
  private final NDArray variance;
  private final long size;
  private long steps;

  /**
   * @param parameters whose slice is stepped; their gradients must have been reduced
   * @param weightDecay the decoupled decay, 0 for none
   */
  public AdamW(FlatParameters parameters, double weightDecay) {
    this.parameters = parameters;
    this.weightDecay = weightDecay;
    manager = parameters.manager().newSubManager();
    size = parameters.masters().getShape().size();
    mean = Ops.zeros(manager, Dtype.F32, size);
    variance = Ops.zeros(manager, Dtype.F32, size);
  }

  /** Running means of the gradients {@code (slice)}: a part of the state. */
  public NDArray mean() {
    return mean;
  }

  /** Running means of the squared gradients {@code (slice)}: a part of the state. */
  public NDArray variance() {
    return variance;
  }

  /** Steps made so far: a part of the state. */
  public long steps() {
    return steps;
  }

  /** Sets the number of steps, after {@link #mean} and {@link #variance} have been restored. */
  public void restore(long stepsMade) {
    steps = stepsMade;
  }

  /**
   * A stretch of the slice and how a step treats it.
   *
   * @param from its first number
   * @param to after its last
   * @param gradientScale multiplies the gradients: the factor of clipping, 1 for none
   */
  public record Part(long from, long to, double rate, double gradientScale) {}

  /** The L2 norm of the slice's gradients: of all, with one process. */
  public double gradientNorm() {
    return gradientNorm(0, size);
  }

  /** The L2 norm of the slice's gradients {@code from} to {@code to}. */
  public double gradientNorm(long from, long to) {
    return onHost() ? hostNorm(from, to) : deviceNorm(from, to);
  }

  private boolean onHost() {
    return Ops.isInHostMemory(mean);
  }

  private double deviceNorm(long from, long to) {
    if (parameters.kernels().isPresent()) {
      return parameters.kernels().get().norm(parameters.gradientSlice(), from, to);
    }
    double sum = 0;
    for (long at = from; at < to; at += PIECE) {
      try (NDManager scope = manager.newSubManager()) {
        var g = piece(scope, parameters.gradientSlice(), at, to);
        double norm = g.norm().getFloat();
        sum += norm * norm;
      }
    }
    return Math.sqrt(sum);
  }

  /** One step of everything alike. */
  public void step(double rate, double gradientScale) {
    step(List.of(new Part(0, size, rate, gradientScale)));
  }

  /**
   * One step.
   *
   * @param parts of the slice, which they cover together
   */
  public void step(List<Part> parts) {
    steps++;
    parts.forEach(onHost() ? this::hostStep : this::deviceStep);
  }

  private OptimizerKernels.Step factors(Part part) {
    return new OptimizerKernels.Step(
        part.gradientScale(),
        1 - part.rate() * weightDecay,
        part.rate() / (1 - Math.pow(BETA1, steps)),
        Math.sqrt(1 - Math.pow(BETA2, steps)),
        BETA1,
        BETA2,
        EPSILON);
  }

  private void deviceStep(Part part) {
    var factors = factors(part);
    var values = parameters.masters();
    var gradients = parameters.gradientSlice();
    var kernels = parameters.kernels();
    if (kernels.isPresent()) {
      kernels.get().adamW(values, gradients, mean, variance, part.from(), part.to(), factors);
      return;
    }
    for (long at = part.from(); at < part.to(); at += PIECE) {
      try (NDManager scope = manager.newSubManager()) {
        var p = piece(scope, values, at, part.to());
        var m = piece(scope, mean, at, part.to());
        var v = piece(scope, variance, at, part.to());
        var g = piece(scope, gradients, at, part.to());
        if (part.gradientScale() != 1) {
          g = g.mul(part.gradientScale());
        }
        m.muli(BETA1).addi(g.mul(1 - BETA1));
        v.muli(BETA2).addi(g.square().muli(1 - BETA2));
        var denominator = v.sqrt().divi(factors.bias()).addi(EPSILON);
        p.muli(factors.decay()).subi(m.div(denominator).muli(factors.rate()));
      }
    }
  }

  /** Some numbers {@code from} to {@code to} of the buffers. */
  private interface Range {
    void run(long from, long to);
  }

  private static void onWorkers(long first, long end, Range range) {
    Workers.run(
        tasks(first, end),
        task -> {
          long from = first + (long) task * TASK;
          range.run(from, Math.min(end, from + TASK));
        });
  }

  private static int tasks(long first, long end) {
    return (int) ((end - first + TASK - 1) / TASK);
  }

  private double hostNorm(long first, long end) {
    var gradients = Ops.memory(parameters.gradientSlice());
    var sums = new double[tasks(first, end)];
    onWorkers(
        first,
        end,
        (from, to) -> {
          var g = new float[CHUNK];
          double sum = 0;
          for (long at = from; at < to; at += CHUNK) {
            int count = (int) Math.min(CHUNK, to - at);
            read(gradients, at, g, count);
            sum += squares(g, count);
          }
          sums[(int) ((from - first) / TASK)] = sum;
        });
    return Math.sqrt(Arrays.stream(sums).sum());
  }

  /** Four sums, of which none waits for another. */
  private static double squares(float[] g, int count) {
    double a = 0;
    double b = 0;
    double c = 0;
    double d = 0;
    int i = 0;
    for (; i + 4 <= count; i += 4) {
      a += (double) g[i] * g[i];
      b += (double) g[i + 1] * g[i + 1];
      c += (double) g[i + 2] * g[i + 2];
      d += (double) g[i + 3] * g[i + 3];
    }
    for (; i < count; i++) {
      a += (double) g[i] * g[i];
    }
    return a + b + (c + d);
  }

  private void hostStep(Part part) {
    var factors = factors(part);
    var values = Ops.memory(parameters.masters());
    var gradients = Ops.memory(parameters.gradientSlice());
    var means = Ops.memory(mean);
    var variances = Ops.memory(variance);
    onWorkers(
        part.from(),
        part.to(),
        (from, to) -> {
          var p = new float[CHUNK];
          var g = new float[CHUNK];
          var m = new float[CHUNK];
          var v = new float[CHUNK];
          for (long at = from; at < to; at += CHUNK) {
            int count = (int) Math.min(CHUNK, to - at);
            read(values, at, p, count);
            read(gradients, at, g, count);
            read(means, at, m, count);
            read(variances, at, v, count);
            step(factors, p, g, m, v, count);
            write(p, values, at, count);
            write(m, means, at, count);
            write(v, variances, at, count);
          }
        });
  }

  private static void read(MemorySegment from, long at, float[] to, int count) {
    MemorySegment.copy(from, JAVA_FLOAT, at * Float.BYTES, to, 0, count);
  }

  private static void write(float[] from, MemorySegment to, long at, int count) {
    MemorySegment.copy(from, 0, to, JAVA_FLOAT, at * Float.BYTES, count);
  }

  /** Loops over arrays, which the compiler turns into vector code. */
  private static void step(
      OptimizerKernels.Step factors, float[] p, float[] g, float[] m, float[] v, int count) {
    float gradient = (float) factors.gradientScale();
    float keep1 = (float) BETA1;
    float take1 = (float) (1 - BETA1);
    float keep2 = (float) BETA2;
    float take2 = (float) (1 - BETA2);
    for (int i = 0; i < count; i++) {
      float scaled = gradient * g[i];
      m[i] = keep1 * m[i] + take1 * scaled;
      v[i] = keep2 * v[i] + take2 * (scaled * scaled);
    }
    float decay = (float) factors.decay();
    float rate = (float) factors.rate();
    float bias = (float) factors.bias();
    float epsilon = (float) EPSILON;
    for (int i = 0; i < count; i++) {
      float denominator = (float) Math.sqrt(v[i]) / bias + epsilon;
      p[i] = decay * p[i] - rate * (m[i] / denominator);
    }
  }

  private static NDArray piece(NDManager scope, NDArray flat, long at, long to) {
    var piece = Ops.narrow(flat, 0, at, Math.min(PIECE, to - at));
    piece.attach(scope);
    return piece;
  }

  /** PyTorch's factor for clipping a global norm; 1 when {@code maxNorm} is 0 or not exceeded. */
  public static double clipFactor(double norm, double maxNorm) {
    return maxNorm <= 0 ? 1 : Math.min(1, maxNorm / (norm + 1e-6));
  }

  @Override
  public void close() {
    manager.close();
  }
}
