package org.meteora.tensor;

import static java.lang.foreign.ValueLayout.JAVA_LONG;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.pytorch.engine.PtNDArray;
import ai.djl.pytorch.engine.PtNDManager;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.invoke.MethodHandle;
import java.util.Arrays;
import org.meteora.foreign.Functions;

/**
 * libtorch's stable C ABI ({@code aoti_torch_*}) through the foreign-function interface: what DJL's
 * own binding cannot name, first of all bfloat16, and any ATen operator by its name ({@link
 * Operator}). A {@link PtNDArray}'s handle is the ABI's {@code AtenTensorHandle}.
 *
 * <p>With {@link Operator} and {@link CudaAbi} the only class that holds method handles to
 * libtorch; everything else calls {@link Ops}.
 */
final class StableAbi {
  private static final SymbolLookup LIBRARY;

  static {
    LibTorch.load();
    NativeErrors.keep();
    LIBRARY = SymbolLookup.libraryLookup("libtorch_cpu.so", Arena.global());
  }

  private static final MethodHandle GET_DATA_PTR = out("aoti_torch_get_data_ptr");
  private static final MethodHandle GET_DTYPE = out("aoti_torch_get_dtype");
  private static final MethodHandle GET_DIM = out("aoti_torch_get_dim");
  private static final MethodHandle GET_SIZES = out("aoti_torch_get_sizes");
  private static final MethodHandle GET_STRIDES = out("aoti_torch_get_strides");
  private static final MethodHandle GET_DEVICE_TYPE = out("aoti_torch_get_device_type");
  private static final MethodHandle GET_DEVICE_INDEX = out("aoti_torch_get_device_index");
  private static final MethodHandle DELETE = handle("aoti_torch_delete_tensor_object", "(J)I");
  private static final MethodHandle GET_NUMEL = out("aoti_torch_get_numel");
  private static final MethodHandle NEW_HANDLE = out("aoti_torch_new_tensor_handle");
  private static final MethodHandle COPY = handle("aoti_torch_copy_", "(JJI)I");
  private static final MethodHandle FROM_BLOB =
      handle("aoti_torch_create_tensor_from_blob", "(AJAAJIIIA)I");
  private static final MethodHandle EMPTY_STRIDED =
      handle("aoti_torch_empty_strided", "(JAAIIIA)I");
  static final int STACK_SLOTS = 24;

  /**
   * Scratch of the calling thread, freed behind it: the dispatcher's stack, and one slot for a
   * returned value.
   */
  private static final ThreadLocal<MemorySegment> SCRATCH =
      ThreadLocal.withInitial(() -> Arena.ofAuto().allocate(8L * (STACK_SLOTS + 1), 8));

  private StableAbi() {}

  /** Room for an operator's arguments and results. */
  static MemorySegment scratch() {
    return SCRATCH.get();
  }

  /** Room for one returned value. */
  static MemorySegment slot() {
    return SCRATCH.get().asSlice(8L * STACK_SLOTS, 8);
  }

  static MethodHandle handle(String symbol, String signature) {
    return Functions.bind(LIBRARY, symbol, signature);
  }

  /** A function of libtorch; null where this build does not export it. */
  static MethodHandle optional(String symbol, String signature) {
    return LIBRARY.find(symbol).map(it -> Functions.bind(it, signature)).orElse(null);
  }

  private static MethodHandle out(String symbol) {
    return handle(symbol, "(JA)I");
  }

  static void check(String what, Functions.ExactCall call) {
    if (Functions.call(call) != 0) {
      var reason = NativeErrors.reason(Errors.WHAT == null ? NativeErrors.take() : Errors.what());
      throw new IllegalStateException(
          "libtorch failed in "
              + what
              + (reason.isEmpty() ? " (its message is on stderr)" : ": " + reason));
    }
  }

  /** The reason of the calling thread's last failure, where this version can be asked (2.12). */
  private static final class Errors {
    static final MethodHandle WHAT = optional("torch_exception_get_what_without_backtrace", "()A");

    static String what() {
      try {
        var text = (MemorySegment) WHAT.invokeExact();
        return text.address() == 0 ? "" : text.reinterpret(1 << 16).getString(0);
      } catch (Throwable e) {
        return "";
      }
    }
  }

  private static long query(MethodHandle function, long handle, String what) {
    var slot = slot();
    slot.set(JAVA_LONG, 0, 0);
    check(what, () -> (int) function.invokeExact(handle, slot));
    return slot.get(JAVA_LONG, 0);
  }

  static long handleOf(NDArray array) {
    return ((PtNDArray) array).getHandle();
  }

  static NDArray adopt(NDManager manager, long handle) {
    return new PtNDArray((PtNDManager) manager, handle);
  }

  static long dataPointer(long tensor) {
    return query(GET_DATA_PTR, tensor, "get_data_ptr");
  }

  static long[] strides(long tensor) {
    return numbers(GET_STRIDES, tensor, "get_strides");
  }

  static long[] sizes(long tensor) {
    return numbers(GET_SIZES, tensor, "get_sizes");
  }

  private static long[] numbers(MethodHandle function, long tensor, String what) {
    long count = query(GET_DIM, tensor, "get_dim");
    return count == 0
        ? new long[0]
        : MemorySegment.ofAddress(query(function, tensor, what))
            .reinterpret(8 * count)
            .toArray(JAVA_LONG);
  }

  static long count(long tensor) {
    return query(GET_NUMEL, tensor, "get_numel");
  }

  static int scalarType(long tensor) {
    return (int) query(GET_DTYPE, tensor, "get_dtype");
  }

  /** The kind of device (0 the CPU, 1 CUDA) and its index (−1 for the CPU). */
  static int[] device(long tensor) {
    return new int[] {
      (int) query(GET_DEVICE_TYPE, tensor, "get_device_type"),
      (int) query(GET_DEVICE_INDEX, tensor, "get_device_index")
    };
  }

  static boolean isRowMajor(long tensor) {
    var sizes = sizes(tensor);
    var strides = strides(tensor);
    long expected = 1;
    for (int i = sizes.length - 1; i >= 0; i--) {
      if (sizes[i] != 1 && strides[i] != expected) {
        return count(tensor) == 0;
      }
      expected *= sizes[i];
    }
    return true;
  }

  /** The memory of a row-major tensor on the CPU; valid as long as that. */
  static MemorySegment bytes(long tensor) {
    long size = count(tensor) * Dtype.ofScalarType(scalarType(tensor)).bytes();
    return size == 0
        ? MemorySegment.ofArray(new byte[0])
        : MemorySegment.ofAddress(dataPointer(tensor)).reinterpret(size);
  }

  static long newHandle(long tensor) {
    return query(NEW_HANDLE, tensor, "new_tensor_handle");
  }

  static void delete(long tensor) {
    check("delete_tensor_object", () -> (int) DELETE.invokeExact(tensor));
  }

  /** libtorch's own random numbers: functions that 2.7 to 2.15 export alike, not of the C ABI. */
  private static final class Seeds {
    static final MethodHandle CPU_GENERATOR =
        handle("_ZN2at6detail22getDefaultCPUGeneratorEv", "()A");
    static final MethodHandle SEED_CPU =
        handle("_ZN2at16CPUGeneratorImpl16set_current_seedEm", "(JJ)V");
    static final MethodHandle SEED_CUDA = handle("_ZN5torch4cuda15manual_seed_allEm", "(J)V");
  }

  /** Seeds the random numbers of the CPU and of all GPUs. */
  static void seed(long seed) {
    // a Generator is a pointer to its implementation, and comes by reference
    var generator = (MemorySegment) Functions.call(Seeds.CPU_GENERATOR);
    Functions.call(Seeds.SEED_CPU, generator.reinterpret(8).get(JAVA_LONG, 0), seed);
    Functions.call(Seeds.SEED_CUDA, seed);
  }

  static void copy(long target, long source) {
    check("copy_", () -> (int) COPY.invokeExact(target, source, 0));
  }

  /** A row-major tensor over host memory of someone else's, which must outlive it. */
  static long fromBlob(MemorySegment data, long[] shape, int scalarType) {
    return fromBlob(data, shape, rowMajor(shape), scalarType, 0, 0);
  }

  /** A tensor over memory of the manager's device that is someone else's. */
  static NDArray view(NDManager manager, long address, long[] shape, long[] strides, Dtype dtype) {
    var device = manager.getDevice();
    int type = device.isGpu() ? 1 : 0;
    int index = device.isGpu() ? device.getDeviceId() : 0;
    var data = MemorySegment.ofAddress(address);
    return adopt(manager, fromBlob(data, shape, strides, dtype.scalarType(), type, index));
  }

  private static long fromBlob(
      MemorySegment data, long[] shape, long[] stride, int scalarType, int device, int index) {
    try (var arena = Arena.ofConfined()) {
      var sizes = arena.allocateFrom(JAVA_LONG, shape);
      var strides = arena.allocateFrom(JAVA_LONG, stride);
      var result = arena.allocate(JAVA_LONG);
      long dim = shape.length;
      check(
          "create_tensor_from_blob",
          () ->
              (int)
                  FROM_BLOB.invokeExact(
                      data, dim, sizes, strides, 0L, scalarType, device, index, result));
      return result.get(JAVA_LONG, 0);
    }
  }

  /** A row-major tensor with these values on the manager's device. */
  static NDArray of(NDManager manager, MemorySegment values, long[] shape, Dtype dtype) {
    long size = dtype.bytes() * Arrays.stream(shape).reduce(1, Math::multiplyExact);
    if (size != values.byteSize()) {
      throw new IllegalArgumentException(
          values.byteSize() / dtype.bytes() + " values for " + Arrays.toString(shape));
    }
    long host = empty(shape, dtype.scalarType(), 0, 0);
    bytes(host).copyFrom(values);
    if (!manager.getDevice().isGpu()) {
      return adopt(manager, host);
    }
    try {
      var result = empty(manager, shape, dtype);
      copy(handleOf(result), host);
      return result;
    } finally {
      delete(host);
    }
  }

  /** A row-major tensor with undefined contents on the manager's device. */
  static NDArray empty(NDManager manager, long[] shape, Dtype dtype) {
    var device = manager.getDevice();
    int type = device.isGpu() ? 1 : 0;
    int index = device.isGpu() ? device.getDeviceId() : 0;
    return adopt(manager, empty(shape, dtype.scalarType(), type, index));
  }

  /**
   * @param device 0 for the CPU, 1 for CUDA
   */
  static long empty(long[] shape, int scalarType, int device, int index) {
    try (var arena = Arena.ofConfined()) {
      var sizes = arena.allocateFrom(JAVA_LONG, shape);
      var strides = arena.allocateFrom(JAVA_LONG, rowMajor(shape));
      var result = arena.allocate(JAVA_LONG);
      long dim = shape.length;
      check(
          "empty_strided",
          () ->
              (int)
                  EMPTY_STRIDED.invokeExact(
                      dim, sizes, strides, scalarType, device, index, result));
      return result.get(JAVA_LONG, 0);
    }
  }

  static long[] rowMajor(long[] shape) {
    var strides = new long[shape.length];
    long stride = 1;
    for (int i = shape.length - 1; i >= 0; i--) {
      strides[i] = stride;
      stride *= Math.max(1, shape[i]);
    }
    return strides;
  }
}
