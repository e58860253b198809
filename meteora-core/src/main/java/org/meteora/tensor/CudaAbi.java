package org.meteora.tensor;

import static java.lang.foreign.ValueLayout.JAVA_LONG;

import ai.djl.ndarray.NDArray;
import java.lang.foreign.Arena;
import java.lang.foreign.SymbolLookup;
import java.lang.invoke.MethodHandle;
import org.meteora.foreign.Functions;

/** What {@link StableAbi} has beyond that in a libtorch with CUDA. */
final class CudaAbi {
  private CudaAbi() {}

  /** libtorch's in-place {@code out = beta · self + alpha · a b} on CUDA, where it has one. */
  private static final class Product {
    /** Null in a libtorch without CUDA: the caller has another way. */
    static final MethodHandle ADDMM =
        Functions.library("libtorch_cuda.so")
            .flatMap(library -> library.find("aoti_torch_cuda_addmm_out"))
            .map(symbol -> Functions.bind(symbol, "(JJJJDD)I"))
            .orElse(null);
  }

  /** Which CUDA stream the calling thread's operations run on. */
  private static final class StreamGuard {
    static final MethodHandle CREATE_GUARD;
    static final MethodHandle DELETE_GUARD;

    static {
      var library = SymbolLookup.libraryLookup("libtorch_cuda.so", Arena.global());
      CREATE_GUARD = Functions.bind(library, "aoti_torch_create_cuda_stream_guard", "(JIA)I");
      DELETE_GUARD = Functions.bind(library, "aoti_torch_delete_cuda_stream_guard", "(J)I");
    }
  }

  /** Makes a stream current on this thread until closed. */
  static Ops.Scope onStream(long stream, int device) {
    var slot = StableAbi.slot();
    StableAbi.check(
        "cuda_stream_guard",
        () -> (int) StreamGuard.CREATE_GUARD.invokeExact(stream, device, slot));
    long guard = slot.get(JAVA_LONG, 0);
    return () ->
        StableAbi.check(
            "cuda_stream_guard", () -> (int) StreamGuard.DELETE_GUARD.invokeExact(guard));
  }

  static boolean canAddProduct(NDArray y) {
    return y.getDevice().isGpu() && Product.ADDMM != null;
  }

  /** {@code y += a · b} on CUDA, all matrices. */
  static void addProduct(NDArray y, NDArray a, NDArray b) {
    long out = StableAbi.handleOf(y);
    long left = StableAbi.handleOf(a);
    long right = StableAbi.handleOf(b);
    StableAbi.check(
        "addmm_out", () -> (int) Product.ADDMM.invokeExact(out, out, left, right, 1.0, 1.0));
  }

  /**
   * Gives back the memory of the calling thread's device that libtorch keeps for its next tensors.
   * The C ABI has no name for it; an allocation that no GPU can serve makes libtorch do it before
   * it fails.
   */
  static void emptyCudaCache() {
    try {
      StableAbi.delete(StableAbi.empty(new long[] {1L << 50}, Dtype.U8.scalarType(), 1, -1));
    } catch (IllegalStateException e) {
      // as meant
    }
  }
}
