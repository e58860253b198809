package org.meteora.backend.cpu;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;

import ai.djl.ndarray.NDArray;
import java.lang.foreign.MemorySegment;
import org.meteora.model.Pass;
import org.meteora.model.RmsNorm;
import org.meteora.model.RotaryEmbedding;
import org.meteora.model.TensorOps;
import org.meteora.tensor.Blas;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;
import org.meteora.tensor.Workers;

/**
 * What lies between a Llama's products at inference on the CPU in float32, in Java on the tensors'
 * memory: for one token each tensor operation costs more than the arithmetic of all of them. What
 * gains nothing by that is left to tensor operations.
 */
public final class CpuLayerOps extends TensorOps {
  /** So many numbers are worth another thread. */
  private static final int SHARE = 1 << 14;

  private final boolean invariant;

  /**
   * @param invariant whether nothing may depend on the number of rows
   */
  CpuLayerOps(boolean invariant) {
    this.invariant = invariant;
  }

  private static void onWorkers(int rows, int width, Workers.Range work) {
    Workers.share(rows, (int) Math.max(1, (long) rows * width / SHARE), work);
  }

  @Override
  public NDArray norm(NDArray x, RmsNorm norm) {
    return norm(x, norm, null);
  }

  /**
   * @param scales set to {@code 1 / sqrt(mean(x²) + eps)} of each row; or null
   */
  static NDArray norm(NDArray x, RmsNorm norm, float[] scales) {
    var shape = x.getShape();
    int hidden = (int) shape.get(shape.dimension() - 1);
    var out = Ops.empty(x.getManager(), Dtype.F32, shape.getShape());
    try (var rowMajor = Ops.contiguous(x)) {
      var from = Ops.memory(rowMajor);
      var to = Ops.memory(out);
      var factors = Ops.memory(norm.weight()).toArray(JAVA_FLOAT);
      onWorkers(
          (int) (shape.size() / hidden),
          hidden,
          (first, end) -> {
            var row = new float[hidden];
            for (int i = first; i < end; i++) {
              long offset = (long) i * hidden * Float.BYTES;
              MemorySegment.copy(from, JAVA_FLOAT, offset, row, 0, hidden);
              float scale = norm(row, factors, norm.eps());
              if (scales != null) {
                scales[i] = scale;
              }
              MemorySegment.copy(row, 0, to, JAVA_FLOAT, offset, hidden);
            }
          });
    }
    return out;
  }

  /**
   * The gradient of a norm's input: {@code s (g w) − x s³ / n · Σ (g w x)}, s being the row's
   * scale.
   *
   * @param gradient of the result, row-major as all of these; becomes that of {@code x}
   */
  static void normBackward(NDArray x, RmsNorm norm, float[] scales, NDArray gradient) {
    int hidden = (int) x.getShape().get(x.getShape().dimension() - 1);
    try (var rowMajor = Ops.contiguous(x)) {
      var inputs = Ops.memory(rowMajor);
      var gradients = Ops.memory(gradient);
      var factors = Ops.memory(norm.weight()).toArray(JAVA_FLOAT);
      onWorkers(
          scales.length,
          hidden,
          (first, end) -> {
            var row = new float[hidden];
            var slope = new float[hidden];
            for (int i = first; i < end; i++) {
              long offset = (long) i * hidden * Float.BYTES;
              MemorySegment.copy(inputs, JAVA_FLOAT, offset, row, 0, hidden);
              MemorySegment.copy(gradients, JAVA_FLOAT, offset, slope, 0, hidden);
              normBackward(row, factors, scales[i], slope);
              MemorySegment.copy(slope, 0, gradients, JAVA_FLOAT, offset, hidden);
            }
          });
    }
  }

  private static void normBackward(float[] row, float[] weight, float scale, float[] slope) {
    for (int i = 0; i < row.length; i++) {
      slope[i] *= weight[i];
    }
    float share = (float) (dot(slope, row) * scale * scale * scale / row.length);
    for (int i = 0; i < row.length; i++) {
      slope[i] = scale * slope[i] - share * row[i];
    }
  }

  @Override
  public NDArray add(NDArray sum, NDArray x) {
    return sum.addi(x);
  }

  @Override
  public Heads rotate(NDArray queries, NDArray keys, NDArray values, Pass pass, int layer) {
    rotate(queries, pass.angles());
    rotate(keys, pass.angles());
    int headDim = (int) pass.angles().cos().getShape().get(3);
    return behindTheCache(
        heads(queries, headDim), heads(keys, headDim), heads(values, headDim), pass, layer);
  }

  @Override
  public NDArray attend(NDArray queries, NDArray keys, NDArray values, Pass pass, int layer) {
    if (!Blas.isAvailable()) {
      return super.attend(queries, keys, values, pass, layer);
    }
    rotate(queries, pass.angles());
    rotate(keys, pass.angles());
    var out = Ops.empty(queries.getManager(), Dtype.F32, queries.getShape().getShape());
    int headDim = (int) pass.angles().cos().getShape().get(3);
    var store = pass.cache().layer(layer);
    try (var v = Ops.contiguous(values)) {
      new BlockAttention(
              Ops.memory(queries),
              Ops.memory(keys),
              Ops.memory(v),
              Ops.memory(out),
              Ops.memory(store.keys()),
              Ops.memory(store.values()),
              (int) queries.getShape().get(2) / headDim,
              (int) keys.getShape().get(2) / headDim,
              headDim,
              pass.rows().tables(),
              invariant ? 1 : BlockAttention.TOGETHER)
          .run();
    }
    return out;
  }

  @Override
  public NDArray head(NDArray x, NDArray head) {
    return invariant ? RowProduct.here().linear(x, head, null) : super.head(x, head);
  }

  @Override
  public NDArray siluUp(NDArray gate, NDArray up) {
    if (!invariant) {
      return super.siluUp(gate, up);
    }
    // libtorch takes what does not fill a vector by another exp
    var out = Ops.empty(gate.getManager(), Dtype.F32, gate.getShape().getShape());
    int width = (int) gate.getShape().get(gate.getShape().dimension() - 1);
    try (var g = Ops.contiguous(gate);
        var u = Ops.contiguous(up)) {
      var gates = Ops.memory(g);
      var ups = Ops.memory(u);
      var to = Ops.memory(out);
      onWorkers(
          (int) (gate.size() / width),
          width,
          (first, end) -> {
            for (long i = (long) first * width; i < (long) end * width; i++) {
              float x = gates.getAtIndex(JAVA_FLOAT, i);
              double silu = x / (1 + Math.exp(-x));
              to.setAtIndex(JAVA_FLOAT, i, (float) silu * ups.getAtIndex(JAVA_FLOAT, i));
            }
          });
    }
    return out;
  }

  /** Returns what the row was multiplied by before its weights. */
  private static float norm(float[] row, float[] weight, float eps) {
    float scale = (float) (1 / Math.sqrt(dot(row, row) / row.length + eps));
    for (int i = 0; i < row.length; i++) {
      row[i] = row[i] * scale * weight[i];
    }
    return scale;
  }

  private static double dot(float[] a, float[] b) {
    double even = 0; // two sums: an addition need not wait for the one before
    double odd = 0;
    for (int i = 0; i + 1 < a.length; i += 2) {
      even += a[i] * b[i];
      odd += a[i + 1] * b[i + 1];
    }
    if (a.length % 2 == 1) {
      even += a[a.length - 1] * b[a.length - 1];
    }
    return even + odd;
  }

  /**
   * {@link RotaryEmbedding#rotate} in place.
   *
   * @param x {@code (batch, seq, heads · headDim)} row-major
   */
  static void rotate(NDArray x, RotaryEmbedding.Angles angles) {
    rotate(x, angles, false);
  }

  /** Turns the gradient of what was rotated into that of what it was before, in place. */
  static void rotateBackward(NDArray gradient, RotaryEmbedding.Angles angles) {
    rotate(gradient, angles, true);
  }

  private static void rotate(NDArray x, RotaryEmbedding.Angles angles, boolean backward) {
    var shape = x.getShape();
    int width = (int) shape.get(2);
    int rows = (int) (shape.size() / width);
    int dim = (int) angles.cos().getShape().get(3);
    int positions = (int) (angles.cos().size() / dim); // of one row for all, or of each
    var memory = Ops.memory(x);
    var cos = Ops.memory(angles.cos());
    var sin = Ops.memory(angles.sin());
    onWorkers(
        rows,
        width,
        (first, end) -> {
          var row = new float[width];
          var c = new float[dim];
          var s = new float[dim];
          for (int i = first; i < end; i++) {
            long offset = (long) i * width * Float.BYTES;
            long angle = (long) (i % positions) * dim * Float.BYTES;
            MemorySegment.copy(memory, JAVA_FLOAT, offset, row, 0, width);
            MemorySegment.copy(cos, JAVA_FLOAT, angle, c, 0, dim);
            // the transpose of a rotation: what each half got of the other, it gives
            int half = backward ? dim / 2 : 0;
            MemorySegment.copy(sin, JAVA_FLOAT, angle, s, half, dim - half);
            MemorySegment.copy(
                sin, JAVA_FLOAT, angle + (long) (dim - half) * Float.BYTES, s, 0, half);
            for (int head = 0; head < width; head += dim) {
              rotate(row, head, dim / 2, c, s);
            }
            MemorySegment.copy(row, 0, memory, JAVA_FLOAT, offset, width);
          }
        });
  }

  /** One head; the sine's first half is negated already. */
  private static void rotate(float[] row, int at, int half, float[] cos, float[] sin) {
    for (int i = 0; i < half; i++) {
      float low = row[at + i];
      float high = row[at + half + i];
      row[at + i] = low * cos[i] + high * sin[i];
      row[at + half + i] = high * cos[half + i] + low * sin[half + i];
    }
  }
}
