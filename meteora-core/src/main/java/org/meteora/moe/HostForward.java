package org.meteora.moe;

import ai.djl.ndarray.NDArray;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.stream.IntStream;
import org.meteora.torch.Dtype;
import org.meteora.torch.Ops;

/**
 * The adapters' contribution computed in Java on the tensors' own memory: inference on the CPU in float32. Routing, the chosen adapters'
 * rows of A and of Bᵀ, and the sum into the base result are plain loops: for few tokens a tensor operation costs more than the arithmetic
 * it does, and for many tokens only the chosen adapters' arithmetic is done at all, k · r ranks a token and not Σr.
 */
final class HostForward {
  /** From this many tokens on the work is split over the processors. */
  private static final int PARALLEL_FROM = 32;

  /**
   * Which adapters were chosen.
   *
   * @param indices {@code (tokens, k)} row-major, best first
   * @param weights as {@code indices}
   */
  record Chosen(int tokens, int topK, int[] indices, float[] weights) {}

  private HostForward() {}

  static boolean fits(NDArray x) {
    return !x.getDevice().isGpu() && Ops.dtype(x) == Dtype.F32;
  }

  /** {@link Gate#inference} on logits {@code (tokens, N)} in host memory. */
  static Chosen route(NDArray logits, int topK, double temperature) {
    int tokens = (int) logits.getShape().get(0);
    int n = (int) logits.getShape().get(1);
    var values = floats(logits);
    var indices = new int[tokens * topK];
    var weights = new float[tokens * topK];
    for (int t = 0; t < tokens; t++) {
      int row = t * n;
      for (int j = 0; j < topK; j++) {
        int best = -1;
        for (int i = 0; i < n; i++) {
          if ((best < 0 || values[row + i] > values[row + best]) && !contains(indices, t * topK, j, i)) {
            best = i;
          }
        }
        indices[t * topK + j] = best;
      }
      double sum = 0;
      double top = values[row + indices[t * topK]];
      for (int j = 0; j < topK; j++) {
        double weight = Math.exp((values[row + indices[t * topK + j]] - top) / temperature);
        weights[t * topK + j] = (float) weight;
        sum += weight;
      }
      for (int j = 0; j < topK; j++) {
        weights[t * topK + j] /= (float) sum;
      }
    }
    return new Chosen(tokens, topK, indices, weights);
  }

  private static boolean contains(int[] values, int from, int count, int wanted) {
    for (int i = from; i < from + count; i++) {
      if (values[i] == wanted) {
        return true;
      }
    }
    return false;
  }

  /** One adapter for every token. */
  static Chosen fixed(int tokens, int adapter) {
    var indices = new int[tokens];
    var weights = new float[tokens];
    Arrays.fill(indices, adapter);
    Arrays.fill(weights, 1);
    return new Chosen(tokens, 1, indices, weights);
  }

  private static float[] floats(NDArray array) {
    var result = new float[(int) array.getShape().size()];
    var memory = memory(array);
    MemorySegment.copy(memory, ValueLayout.JAVA_FLOAT, 0, result, 0, result.length);
    return result;
  }

  private static MemorySegment memory(NDArray array) {
    return MemorySegment.ofAddress(Ops.dataPointer(array)).reinterpret(array.getShape().size() * Float.BYTES);
  }

  /**
   * Adds the contribution to {@code y} in place.
   *
   * @param x {@code (tokens, in)} row-major
   * @param y {@code (tokens, out)} row-major
   */
  static void add(NDArray x, NDArray y, BankLayout bank, Chosen chosen) {
    int in = (int) x.getShape().get(1);
    int out = (int) (y.getShape().size() / chosen.tokens());
    var source = memory(x);
    var target = memory(y);
    var a = memory(bank.loraA());
    var b = memory(bank.loraBTransposed(false));
    int blocks =
        chosen.tokens() < PARALLEL_FROM ? 1 : Math.min(Runtime.getRuntime().availableProcessors(), chosen.tokens());
    if (blocks == 1) {
      block(source, target, a, b, in, out, bank, chosen, 0, chosen.tokens());
    } else {
      IntStream.range(0, blocks)
          .parallel()
          .forEach(
              i ->
                  block(
                      source,
                      target,
                      a,
                      b,
                      in,
                      out,
                      bank,
                      chosen,
                      (int) ((long) chosen.tokens() * i / blocks),
                      (int) ((long) chosen.tokens() * (i + 1) / blocks)));
    }
  }

  /** Tokens {@code from} to {@code to}, adapter by adapter, so that an adapter's rows stay in the cache. */
  private static void block(
      MemorySegment source,
      MemorySegment target,
      MemorySegment a,
      MemorySegment b,
      int in,
      int out,
      BankLayout bank,
      Chosen chosen,
      int from,
      int to) {
    int tokens = to - from;
    var x = new float[tokens * in];
    var y = new float[tokens * out];
    MemorySegment.copy(source, ValueLayout.JAVA_FLOAT, (long) from * in * Float.BYTES, x, 0, x.length);
    MemorySegment.copy(target, ValueLayout.JAVA_FLOAT, (long) from * out * Float.BYTES, y, 0, y.length);
    int n = bank.bank().size();
    int most = bank.bank().maxRank();
    var rowsA = new float[most * in];
    var rowsB = new float[most * out];
    var z = new float[most];
    int k = chosen.topK();
    for (int adapter = 0; adapter < n; adapter++) {
      int rank = bank.rank(adapter);
      if (rank == 0) {
        continue;
      }
      boolean loaded = false;
      float scale = (float) bank.bank().scales()[adapter];
      for (int t = 0; t < tokens; t++) {
        int at = -1;
        for (int j = 0; j < k; j++) {
          if (chosen.indices()[(from + t) * k + j] == adapter) {
            at = (from + t) * k + j;
          }
        }
        if (at < 0) {
          continue;
        }
        if (!loaded) {
          long offset = bank.offset(adapter);
          MemorySegment.copy(a, ValueLayout.JAVA_FLOAT, offset * in * Float.BYTES, rowsA, 0, rank * in);
          MemorySegment.copy(b, ValueLayout.JAVA_FLOAT, offset * out * Float.BYTES, rowsB, 0, rank * out);
          loaded = true;
        }
        dots(x, t * in, rowsA, in, rank, z);
        float weight = chosen.weights()[at] * scale;
        for (int r = 0; r < rank; r++) {
          z[r] *= weight;
        }
        sums(y, t * out, rowsB, out, rank, z);
      }
    }
    MemorySegment.copy(y, 0, target, ValueLayout.JAVA_FLOAT, (long) from * out * Float.BYTES, y.length);
  }

  /** {@code z = A x}: four rows at a time, so that four sums are under way at once. */
  private static void dots(float[] x, int at, float[] a, int in, int rank, float[] z) {
    int r = 0;
    for (; r + 4 <= rank; r += 4) {
      int a0 = r * in;
      int a1 = a0 + in;
      int a2 = a1 + in;
      int a3 = a2 + in;
      float s0 = 0;
      float s1 = 0;
      float s2 = 0;
      float s3 = 0;
      for (int i = 0; i < in; i++) {
        float v = x[at + i];
        s0 += v * a[a0 + i];
        s1 += v * a[a1 + i];
        s2 += v * a[a2 + i];
        s3 += v * a[a3 + i];
      }
      z[r] = s0;
      z[r + 1] = s1;
      z[r + 2] = s2;
      z[r + 3] = s3;
    }
    for (; r < rank; r++) {
      float s = 0;
      for (int i = 0; i < in; i++) {
        s += x[at + i] * a[r * in + i];
      }
      z[r] = s;
    }
  }

  /** {@code y += z Bᵀ}: four rows at a time, so that y is read and written once for four. */
  private static void sums(float[] y, int at, float[] b, int out, int rank, float[] z) {
    int r = 0;
    for (; r + 4 <= rank; r += 4) {
      int b0 = r * out;
      int b1 = b0 + out;
      int b2 = b1 + out;
      int b3 = b2 + out;
      float z0 = z[r];
      float z1 = z[r + 1];
      float z2 = z[r + 2];
      float z3 = z[r + 3];
      for (int i = 0; i < out; i++) {
        y[at + i] += z0 * b[b0 + i] + z1 * b[b1 + i] + z2 * b[b2 + i] + z3 * b[b3 + i];
      }
    }
    for (; r < rank; r++) {
      for (int i = 0; i < out; i++) {
        y[at + i] += z[r] * b[r * out + i];
      }
    }
  }
}
