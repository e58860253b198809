package org.meteora.tensor;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.Shape;
import ai.djl.pytorch.engine.PtNDArray;
import ai.djl.pytorch.jni.JniUtils;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.Optional;

/**
 * Tensor operations that DJL's {@link NDArray} lacks or cannot do in bfloat16. Results belong to
 * the manager of the first tensor argument unless a manager is given. All are differentiable unless
 * they say otherwise.
 *
 * <p>Long, because an operation is looked for in one place; each is a few lines.
 */
public final class Ops {
  private Ops() {}

  /** The true dtype, bfloat16 included (which DJL calls UNKNOWN). */
  public static Dtype dtype(NDArray x) {
    return Dtype.ofScalarType(StableAbi.scalarType(StableAbi.handleOf(x)));
  }

  /**
   * Address of the first element: in host memory, or on the device. Valid while the array is open.
   */
  public static long dataPointer(NDArray x) {
    return StableAbi.dataPointer(StableAbi.handleOf(x));
  }

  /**
   * The memory of a row-major float32 tensor on the CPU. Valid while the array is open. Several
   * threads may ask at once, which DJL's own {@link NDArray#getShape} is not made for: it keeps
   * what it has found out in a field that is not volatile.
   */
  public static MemorySegment memory(NDArray x) {
    return MemorySegment.ofAddress(dataPointer(x))
        .reinterpret(StableAbi.count(StableAbi.handleOf(x)) * Dtype.F32.bytes());
  }

  /** {@code x} converted to {@code dtype}; {@code x} itself when it has that dtype already. */
  public static NDArray cast(NDArray x, Dtype dtype) {
    return dtype(x) == dtype ? x : convert(x, dtype);
  }

  /** A new tensor with the values of {@code x} in {@code dtype}. */
  public static NDArray convert(NDArray x, Dtype dtype) {
    return Operator.call("aten::to.dtype", x, dtype, false, true);
  }

  /** A tensor with undefined contents on the manager's device. */
  public static NDArray empty(NDManager manager, Dtype dtype, long... shape) {
    return StableAbi.empty(manager, shape, dtype);
  }

  /**
   * A tensor of these numbers on the manager's device, int64. DJL's own {@code create} keeps a copy
   * of them in native memory until the garbage collector comes by.
   */
  public static NDArray of(NDManager manager, long[] values, long... shape) {
    return StableAbi.of(manager, MemorySegment.ofArray(values), shape, Dtype.I64);
  }

  /** A tensor of these numbers on the manager's device, int32; see {@link #of}. */
  public static NDArray of(NDManager manager, int[] values, long... shape) {
    return StableAbi.of(manager, MemorySegment.ofArray(values), shape, Dtype.I32);
  }

  /** A tensor of these numbers on the manager's device, float32; see {@link #of}. */
  public static NDArray of(NDManager manager, float[] values, long... shape) {
    return StableAbi.of(manager, MemorySegment.ofArray(values), shape, Dtype.F32);
  }

  /** A tensor of zeros on the manager's device. */
  public static NDArray zeros(NDManager manager, Dtype dtype, long... shape) {
    var result = empty(manager, dtype, shape);
    clear(result);
    return result;
  }

  /** Sets all values of {@code x} to zero; not to be recorded. */
  public static void clear(NDArray x) {
    Operator.callInPlace("aten::zero_", x);
  }

  /**
   * A row-major tensor over mapped or native memory, which must stay valid as long as the tensor;
   * not copied.
   */
  public static NDArray wrap(NDManager manager, MemorySegment data, Dtype dtype, long... shape) {
    return StableAbi.adopt(manager, StableAbi.fromBlob(data, shape, dtype.scalarType()));
  }

  /**
   * A tensor over memory on the manager's device, which must stay valid as long as the tensor.
   *
   * @param strides in elements
   */
  public static NDArray view(
      NDManager manager, long address, Dtype dtype, long[] shape, long[] strides) {
    return StableAbi.view(manager, address, shape, strides, dtype);
  }

  /** How many elements lie between neighbours of each dimension. */
  public static long[] strides(NDArray x) {
    return StableAbi.strides(StableAbi.handleOf(x));
  }

  /**
   * Copies the values of {@code source} into {@code target}, converting dtype and device; shapes
   * must broadcast. Not differentiable.
   */
  public static void copy(NDArray target, NDArray source) {
    StableAbi.copy(StableAbi.handleOf(target), StableAbi.handleOf(source));
  }

  /**
   * Makes {@code x} a second handle on the memory of {@code source}, of the same shape, dtype and
   * device; its own is let go, and what it held is not copied. Not to be recorded.
   */
  public static void share(NDArray x, NDArray source) {
    try (var off = notRecording();
        var alias = Operator.call("aten::set_.source_Tensor", x, source)) {
      assert dataPointer(alias) == dataPointer(source);
    }
  }

  /** A second handle on the same tensor (same memory), owned by {@code manager}. */
  public static NDArray alias(NDManager manager, NDArray x) {
    return Operator.callIn(manager, "aten::alias", x);
  }

  /** The same memory outside of the graph that {@code x} belongs to, owned by {@code manager}. */
  public static NDArray detach(NDManager manager, NDArray x) {
    return Operator.callIn(manager, "aten::detach", x);
  }

  /**
   * {@code x · weightᵀ (+ bias)}: {@code x (…, in)}, {@code weight (out, in)}, {@code bias (out)}
   * or null.
   */
  public static NDArray linear(NDArray x, NDArray weight, NDArray bias) {
    return Operator.call("aten::linear", x, weight, Optional.ofNullable(bias));
  }

  /**
   * {@code y += x · weightᵀ} in place; not differentiable.
   *
   * @param y {@code (tokens, out)}
   * @param x {@code (tokens, in)}
   * @param weight {@code (out, in)}
   */
  public static void addLinear(NDArray y, NDArray x, NDArray weight) {
    if (CudaAbi.canAddProduct(y)) {
      try (var transposed = transpose(weight, 0, 1)) {
        CudaAbi.addProduct(y, x, transposed);
      }
      return;
    }
    try (var added = linear(x, weight, null)) {
      y.addi(added);
    }
  }

  /** Whether operations of this thread are recorded for {@link #backward}. */
  public static boolean isRecording() {
    return JniUtils.isGradMode();
  }

  /**
   * {@code x · factor}, safe to record. DJL's {@code x.mul(number)} is not: its backward pass reads
   * the number from a Java buffer that was let go when {@code mul} returned, and that the garbage
   * collector may have freed since.
   */
  public static NDArray scale(NDArray x, double factor) {
    try (var host = Devices.newHostManager()) {
      var constant = empty(x.getManager(), dtype(x)); // libtorch's own memory
      copy(constant, of(host, new float[] {(float) factor}));
      return x.mul(constant);
    }
  }

  /**
   * {@code x} itself, attached to the manager, when it lies on its device and has this dtype; else
   * a copy there.
   */
  public static NDArray placed(NDArray x, NDManager manager, Dtype dtype) {
    if (x.getDevice().equals(manager.getDevice()) && dtype(x) == dtype) {
      x.attach(manager);
      return x;
    }
    return copyOf(x, manager, dtype);
  }

  /** A copy of {@code x}, owned by the manager and on its device, in this dtype. */
  public static NDArray copyOf(NDArray x, NDManager manager, Dtype dtype) {
    var copy = empty(manager, dtype, x.getShape().getShape());
    copy(copy, x);
    return copy;
  }

  /** Whether the values of {@code x} lie where Java can read and write them. */
  public static boolean isInHostMemory(NDArray x) {
    return !x.getDevice().isGpu();
  }

  /** {@code x · sigmoid(x)}. */
  public static NDArray silu(NDArray x) {
    return Operator.call("aten::silu", x);
  }

  /** {@code x} row-major; {@code x} itself, under another handle, when it is already. */
  public static NDArray contiguous(NDArray x) {
    return Operator.call("aten::contiguous", x, 0);
  }

  /** Whether the values of {@code x} lie one after another, the last dimension's first. */
  public static boolean isRowMajor(NDArray x) {
    return StableAbi.isRowMajor(StableAbi.handleOf(x));
  }

  /** {@code 1 / sqrt(x)}. */
  public static NDArray rsqrt(NDArray x) {
    return Operator.call("aten::rsqrt", x);
  }

  /** A view of {@code length} entries of dimension {@code dim} from {@code start}. */
  public static NDArray narrow(NDArray x, int dim, long start, long length) {
    return Operator.call("aten::narrow", x, dim, start, length);
  }

  /** A view with two dimensions exchanged. */
  public static NDArray transpose(NDArray x, int dim0, int dim1) {
    return Operator.call("aten::transpose.int", x, dim0, dim1);
  }

  /** Rows of {@code x} along {@code dim} by {@code index (n)} int64. */
  public static NDArray indexSelect(NDArray x, int dim, NDArray index) {
    return Operator.callIn(index.getManager(), "aten::index_select", x, dim, index);
  }

  /** Writes rows {@code (n, …)} to the rows {@code index (n)} int64 of {@code x}, in place. */
  public static void put(NDArray x, NDArray index, NDArray rows) {
    Operator.callInPlace("aten::index_copy_", x, 0, index, rows);
  }

  /**
   * {@code x} with {@code source} added at positions {@code index} (same shape as {@code source})
   * along {@code dim}.
   */
  public static NDArray scatterAdd(NDArray x, int dim, NDArray index, NDArray source) {
    return Operator.callIn(source.getManager(), "aten::scatter_add", x, dim, index, source);
  }

  /** {@link #scatterAdd} into {@code x} itself; not to be recorded. */
  public static void scatterAddInPlace(NDArray x, int dim, NDArray index, NDArray source) {
    Operator.callInPlace("aten::scatter_add_", x, dim, index, source);
  }

  /** {@code x} replaced by e to its power, under another handle; not to be recorded. */
  public static NDArray expInPlace(NDArray x) {
    return Operator.call("aten::exp_", x);
  }

  /** The k largest along the last dimension, best first: values, indices (int64). */
  public static NDArray[] topK(NDArray x, int k) {
    return Operator.callForAll(2, "aten::topk", x, k, -1, true, true);
  }

  /**
   * The reduced singular value decomposition of a matrix {@code (m, n)}, x = U diag(S) Vᵀ: U {@code
   * (m, k)}, S {@code (k)} in descending order, V {@code (n, k)}, k = min(m, n).
   */
  public static NDArray[] svd(NDArray x) {
    return Operator.callForAll(3, "aten::svd", x, true, true);
  }

  /** Ones and zeros: a one at each place with the probability there, from libtorch's generator. */
  public static NDArray bernoulli(NDArray probabilities) {
    return Operator.call("aten::bernoulli", probabilities);
  }

  /** Softmax over the last dimension, computed and returned in float32. */
  public static NDArray softmax(NDArray x) {
    return Operator.call("aten::softmax.int", x, -1, Optional.of(Dtype.F32));
  }

  /** Zeroes entries with probability {@code p} and scales the rest by {@code 1 / (1 − p)}. */
  public static NDArray dropout(NDArray x, double p) {
    if (!x.getDevice().isGpu() && dtype(x) == Dtype.F32) {
      var manager = x.getManager();
      return x.mul(CpuDropout.next(manager, p).factors(manager, x.getShape()));
    }
    return Operator.call("aten::dropout", x, p, true);
  }

  /**
   * Scaled dot-product attention, scaled by {@code 1 / sqrt(dim)}.
   *
   * @param q {@code (batch, heads, queries, dim)}
   * @param k {@code (batch, kvHeads, keys, dim)}; {@code kvHeads} divides {@code heads}
   * @param v as {@code k}
   * @param mask added to the scores, broadcastable to {@code (batch, heads, queries, keys)}, dtype
   *     of {@code q}; or null
   * @param causal mask later keys (only without {@code mask})
   */
  public static NDArray attention(NDArray q, NDArray k, NDArray v, NDArray mask, boolean causal) {
    long heads = q.getShape().get(1);
    boolean grouped = heads != k.getShape().get(1);
    // libtorch 2.7.1 fuses grouped heads on a GPU in 16 bits alone: elsewhere it writes all scores
    boolean repeated = grouped && (!q.getDevice().isGpu() || dtype(q) == Dtype.F32);
    return Operator.call(
        "aten::scaled_dot_product_attention",
        q,
        repeated ? repeatHeads(k, heads) : k,
        repeated ? repeatHeads(v, heads) : v,
        Optional.ofNullable(mask),
        0.0,
        causal,
        Optional.empty(),
        grouped && !repeated);
  }

  /**
   * {@link #attention} without mask, causal, by libtorch's flash attention, which has kernels for
   * all lengths: what libtorch chooses by itself on some cards, cuDNN's, builds a plan for each new
   * shape, 0.1 s for forward and backward on an H100. On a GPU from compute capability 8.0 on, in
   * 16 bits, with heads of a multiple of 8 up to 256.
   *
   * @param q {@code (batch, heads, tokens, dim)}
   * @param k {@code (batch, kvHeads, tokens, dim)}; {@code kvHeads} divides {@code heads}
   * @param v as {@code k}
   * @return {@code (batch, heads, tokens, dim)}, a view of {@code (batch, tokens, heads, dim)}
   * @throws IllegalStateException where this libtorch, or the device, has no such kernel
   */
  public static NDArray flashAttention(NDArray q, NDArray k, NDArray v) {
    int queries = (int) q.getShape().get(2);
    int keys = (int) k.getShape().get(2);
    var rows =
        attentionByRanges(
            transpose(q, 1, 2), transpose(k, 1, 2), transpose(v, 1, 2), null, null, queries, keys);
    return transpose(rows, 1, 2);
  }

  /**
   * Causal attention of several sequences that lie one after another, scaled by {@code 1 /
   * sqrt(dim)}: a sequence's queries are its last positions. On a GPU from compute capability 8.0
   * on, in 16 bits, with heads of a multiple of 8 up to 256; not to be recorded.
   *
   * @param q {@code (queries, heads, dim)}
   * @param k {@code (keys, kvHeads, dim)}; {@code kvHeads} divides {@code heads}; only the last
   *     dimension's values must lie one after another
   * @param v as {@code k}
   * @param queryRanges where each sequence's queries begin, and where the last one's end, int32 on
   *     the device; null where q, k and v are {@code (batch, …)}
   * @param keyRanges the same of keys
   * @param maxQueries of a sequence
   * @param maxKeys of a sequence
   * @return {@code (queries, heads, dim)}
   * @throws IllegalStateException where this libtorch, or the device, has no such kernel
   */
  public static NDArray attentionByRanges(
      NDArray q,
      NDArray k,
      NDArray v,
      NDArray queryRanges,
      NDArray keyRanges,
      int maxQueries,
      int maxKeys) {
    // 15 arguments from 2.7 on, 17 in 2.15: those that are not given are empty in each
    return Operator.callForFirst(
        5,
        "aten::_flash_attention_forward",
        q,
        k,
        v,
        Optional.ofNullable(queryRanges),
        Optional.ofNullable(keyRanges),
        maxQueries,
        maxKeys,
        0.0,
        true,
        false);
  }

  /** Pieces of these lengths along {@code dim}: views, whose gradients are joined in one go. */
  public static NDList split(NDArray x, int[] lengths, int dim) {
    return JniUtils.split((PtNDArray) x, Arrays.stream(lengths).asLongStream().toArray(), dim);
  }

  /** {@code (batch, kvHeads, keys, dim)} as {@code (batch, heads, keys, dim)}. */
  private static NDArray repeatHeads(NDArray x, long heads) {
    var of = x.getShape();
    return x.expandDims(2)
        .broadcast(of.get(0), of.get(1), heads / of.get(1), of.get(2), of.get(3))
        .reshape(of.get(0), heads, of.get(2), of.get(3));
  }

  /** Rows of {@code weight (n, dim)} by {@code ids (…)} int64: {@code (…, dim)}. */
  public static NDArray embedding(NDArray weight, NDArray ids) {
    return Operator.callIn(ids.getManager(), "aten::embedding", weight, ids, -1, false, false);
  }

  /**
   * Adds gradients: runs the backward pass from {@code output} with the gradient {@code gradient}
   * of the same shape (null: {@code output} is a scalar).
   */
  public static void backward(NDArray output, NDArray gradient) {
    if (gradient == null) {
      try (var scope = output.getManager().newSubManager()) {
        backward(
            output, cast(of(scope, new float[] {1}, output.getShape().getShape()), dtype(output)));
      }
    } else {
      JniUtils.backward((PtNDArray) output, (PtNDArray) gradient, false, false);
    }
  }

  /** Records operations for {@link #backward} on this thread until closed; off otherwise. */
  public static Scope recording() {
    return recording(true);
  }

  /** Stops recording on this thread until closed. */
  public static Scope notRecording() {
    return recording(false);
  }

  private static Scope recording(boolean enabled) {
    boolean before = JniUtils.isGradMode();
    JniUtils.setGradMode(enabled);
    return () -> JniUtils.setGradMode(before);
  }

  /**
   * Runs this thread's operations on a CUDA stream until closed, and their backward passes too. New
   * arrays come from that stream's own memory: others must wait for it before they use them, and it
   * for others.
   *
   * @param stream the CUDA driver's handle
   */
  public static Scope onStream(long stream, int device) {
    return CudaAbi.onStream(stream, device);
  }

  /** A stretch of code with a setting of its own. */
  @FunctionalInterface
  public interface Scope extends AutoCloseable {
    @Override
    void close();
  }

  /** {@code shape} as DJL's type. */
  public static Shape shape(long... shape) {
    return new Shape(shape);
  }
}
