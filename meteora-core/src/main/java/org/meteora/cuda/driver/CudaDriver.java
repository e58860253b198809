package org.meteora.cuda.driver;

import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.invoke.MethodHandle;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.MethodType;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import org.meteora.UserException;
import org.meteora.foreign.Functions;

/**
 * The functions of {@code libcuda.so.1} that are used, bound at first use. Every pointer is a
 * {@code long}. Failures are {@link UserException}s of one line that name the call.
 */
final class CudaDriver {
  private static final SymbolLookup LIBRARY =
      Functions.library("libcuda.so.1")
          .orElseThrow(
              () ->
                  new UserException(
                      "no CUDA driver here (libcuda.so.1 is not found): choose --device cpu"));

  /** The code of an allocation for which there is too little memory. */
  private static final int OUT_OF_MEMORY = 2;

  /** {@code I} is an int, {@code P} a pointer or a size, {@code B} a byte. */
  private static final MethodHandle INIT = bind("cuInit", "I");

  private static final MethodHandle ERROR_STRING = bind("cuGetErrorString", "IP");
  static final MethodHandle DEVICE_COUNT = bind("cuDeviceGetCount", "P");
  static final MethodHandle DEVICE = bind("cuDeviceGet", "PI");
  static final MethodHandle DEVICE_NAME = bind("cuDeviceGetName", "PII");
  static final MethodHandle DEVICE_ATTRIBUTE = bind("cuDeviceGetAttribute", "PII");
  static final MethodHandle PRIMARY_CONTEXT = bind("cuDevicePrimaryCtxRetain", "PI");
  static final MethodHandle SET_CURRENT = bind("cuCtxSetCurrent", "P");
  static final MethodHandle MEMORY_INFO = bind("cuMemGetInfo_v2", "PP");
  private static final MethodHandle ALLOCATE = bind("cuMemAlloc_v2", "PP");
  static final MethodHandle HOST_ALLOCATE = bind("cuMemHostAlloc", "PPI");
  static final MethodHandle HOST_FREE = bind("cuMemFreeHost", "P");
  static final MethodHandle FREE = bind("cuMemFree_v2", "P");
  static final MethodHandle TO_DEVICE = bind("cuMemcpyHtoDAsync_v2", "PPPP");
  static final MethodHandle TO_HOST = bind("cuMemcpyDtoHAsync_v2", "PPPP");
  static final MethodHandle FILL = bind("cuMemsetD8Async", "PBPP");
  static final MethodHandle STREAM_CREATE = bind("cuStreamCreate", "PI");
  static final MethodHandle STREAM_CREATE_WITH_PRIORITY = bind("cuStreamCreateWithPriority", "PII");
  static final MethodHandle STREAM_DESTROY = bind("cuStreamDestroy_v2", "P");
  static final MethodHandle STREAM_SYNCHRONIZE = bind("cuStreamSynchronize", "P");
  static final MethodHandle STREAM_WAIT = bind("cuStreamWaitEvent", "PPI");
  static final MethodHandle BEGIN_CAPTURE = bind("cuStreamBeginCapture_v2", "PI");
  static final MethodHandle END_CAPTURE = bind("cuStreamEndCapture", "PP");
  static final MethodHandle GRAPH_INSTANTIATE = bind("cuGraphInstantiateWithFlags", "PPP");
  static final MethodHandle GRAPH_LAUNCH = bind("cuGraphLaunch", "PP");
  static final MethodHandle GRAPH_DESTROY = bind("cuGraphDestroy", "P");
  static final MethodHandle GRAPH_EXEC_DESTROY = bind("cuGraphExecDestroy", "P");
  static final MethodHandle EVENT_CREATE = bind("cuEventCreate", "PI");
  static final MethodHandle EVENT_DESTROY = bind("cuEventDestroy_v2", "P");
  static final MethodHandle EVENT_RECORD = bind("cuEventRecord", "PP");
  static final MethodHandle EVENT_SYNCHRONIZE = bind("cuEventSynchronize", "P");
  static final MethodHandle EVENT_ELAPSED = bind("cuEventElapsedTime", "PPP");
  static final MethodHandle TENSOR_MAP = bind("cuTensorMapEncodeTiled", "PIIPPPPPIIII");
  static final MethodHandle MODULE_LOAD = bind("cuModuleLoadData", "PP");
  static final MethodHandle MODULE_FUNCTION = bind("cuModuleGetFunction", "PPP");
  static final MethodHandle FUNCTION_ATTRIBUTE = bind("cuFuncSetAttribute", "PII");
  static final MethodHandle LAUNCH = bind("cuLaunchKernelEx", "PPPP");

  static {
    var code = (int) Functions.call(INIT, 0);
    if (code != 0) {
      throw new UserException(
          "the CUDA driver does not start (%s): is there a GPU? Choose --device cpu",
          message(code));
    }
  }

  private CudaDriver() {}

  /** A function that not everything needs. */
  static Optional<MemorySegment> find(String name) {
    return LIBRARY.find(name);
  }

  private static MethodHandle bind(String name, String signature) {
    var letters = "(" + signature.replace('P', 'J') + ")I";
    return LIBRARY
        .find(name)
        .map(symbol -> Functions.bind(symbol, letters))
        .orElseGet(() -> Missing.function(name, Functions.descriptor(letters).toMethodType()));
  }

  /** What an old driver lacks: it fails when it is called, and others do without it. */
  static final class Missing {
    private static final List<UserException> ALL = new ArrayList<>();

    static MethodHandle function(String name, MethodType type) {
      var tooOld =
          new UserException(
              "the CUDA driver is too old: it has no " + name + "; 12.0 or newer is needed");
      ALL.add(tooOld);
      return MethodHandles.dropArguments(
          MethodHandles.throwException(type.returnType(), UserException.class).bindTo(tooOld),
          0,
          type.parameterList());
    }
  }

  /**
   * @throws UserException when the driver lacks a function that kernels of our own need
   */
  static void requireAll() {
    if (!Missing.ALL.isEmpty()) {
      throw Missing.ALL.getFirst();
    }
  }

  /** Loads and starts the driver, if that has not happened yet. */
  static void load() {}

  /** Calls a function outside the hot path and checks its result. */
  static void call(String what, MethodHandle handle, Object... arguments) {
    check(what, (int) Functions.call(handle, arguments));
  }

  /** Makes a call of the hot path and checks its result. */
  static void check(String what, Functions.ExactCall call) {
    check(what, (int) Functions.call(call));
  }

  private static void check(String what, int code) {
    if (code != 0) {
      throw new UserException("CUDA: " + what + " failed: " + message(code));
    }
  }

  /** Device memory; 0 when there is not so much. */
  static long allocate(long bytes) {
    try (var arena = Arena.ofConfined()) {
      var out = arena.allocate(JAVA_LONG);
      int code = (int) Functions.call(ALLOCATE, out.address(), bytes);
      if (code != OUT_OF_MEMORY) {
        check("allocating " + bytes + " bytes", code);
      }
      return code == OUT_OF_MEMORY ? 0 : out.get(JAVA_LONG, 0);
    }
  }

  /** Calls a function whose first argument receives a pointer. */
  static long pointer(String what, MethodHandle handle, Object... rest) {
    var arguments = new Object[rest.length + 1];
    System.arraycopy(rest, 0, arguments, 1, rest.length);
    return Functions.written(
        out -> {
          arguments[0] = out.address();
          call(what, handle, arguments);
        });
  }

  /** Calls a function whose first argument receives an int. */
  static int integer(String what, MethodHandle handle, Object... rest) {
    return (int) pointer(what, handle, rest);
  }

  private static String message(int code) {
    var text = Functions.written(out -> Functions.call(ERROR_STRING, code, out.address()));
    return text == 0
        ? "error " + code
        : MemorySegment.ofAddress(text).reinterpret(1024).getString(0) + " (" + code + ")";
  }
}
