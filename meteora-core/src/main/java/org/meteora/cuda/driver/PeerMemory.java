package org.meteora.cuda.driver;

import static java.lang.foreign.ValueLayout.ADDRESS;
import static java.lang.foreign.ValueLayout.JAVA_BYTE;
import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.MemorySegment;
import java.lang.invoke.MethodHandle;
import java.nio.ByteBuffer;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;
import org.meteora.UserException;
import org.meteora.foreign.Functions;

/**
 * Device memory of other processes of this machine, which they let be read (CUDA's interprocess
 * communication). Copy engines read it: no multiprocessor of either device takes part.
 */
public final class PeerMemory implements AutoCloseable {
  /** Bytes of a {@code CUipcMemHandle}. */
  private static final int HANDLE_BYTES = 64;

  private static final MemoryLayout HANDLE =
      MemoryLayout.structLayout(MemoryLayout.sequenceLayout(HANDLE_BYTES, JAVA_BYTE));
  private static final int ENABLE_PEER_ACCESS = 1;

  private final Cuda cuda;

  /** Where allocations of others begin here, by their handles: none may be opened twice. */
  private final Map<ByteBuffer, Long> opened = new HashMap<>();

  /**
   * @param cuda the device that reads
   */
  public PeerMemory(Cuda cuda) {
    this.cuda = cuda;
  }

  private static MethodHandle bind(String name, FunctionDescriptor type) {
    var symbol =
        CudaDriver.find(name)
            .orElseThrow(() -> new UserException("the CUDA driver has no " + name));
    return Linker.nativeLinker().downcallHandle(symbol, type);
  }

  /**
   * What another process needs to read memory of this one, which must stay as long as it may.
   *
   * @throws UserException where the driver cannot lend it
   */
  public static byte[] lend(Cuda cuda, long address) {
    cuda.makeCurrent();
    var range = bind("cuMemGetAddressRange_v2", Functions.descriptor("(AAJ)I"));
    var export = bind("cuIpcGetMemHandle", Functions.descriptor("(AJ)I"));
    try (var arena = Arena.ofConfined()) {
      var base = arena.allocate(JAVA_LONG);
      CudaDriver.call("finding an allocation", range, base, arena.allocate(JAVA_LONG), address);
      var handle = arena.allocate(HANDLE);
      CudaDriver.call("lending memory", export, handle, base.get(JAVA_LONG, 0));
      return ByteBuffer.allocate(HANDLE_BYTES + Long.BYTES)
          .put(handle.toArray(JAVA_BYTE))
          .putLong(address - base.get(JAVA_LONG, 0))
          .array();
    }
  }

  /**
   * Where another process's memory is for this device.
   *
   * @param lent what {@link #lend} gave there
   * @throws UserException where this device cannot read it
   */
  public long open(byte[] lent) {
    var handle = Arrays.copyOf(lent, HANDLE_BYTES);
    long base = opened.computeIfAbsent(ByteBuffer.wrap(handle), it -> openAllocation(handle));
    return base + ByteBuffer.wrap(lent).getLong(HANDLE_BYTES);
  }

  private long openAllocation(byte[] handle) {
    cuda.makeCurrent();
    var open =
        bind("cuIpcOpenMemHandle_v2", FunctionDescriptor.of(JAVA_INT, ADDRESS, HANDLE, JAVA_INT));
    try (var arena = Arena.ofConfined()) {
      var struct = arena.allocate(HANDLE);
      MemorySegment.copy(handle, 0, struct, JAVA_BYTE, 0, HANDLE_BYTES);
      var out = arena.allocate(JAVA_LONG);
      CudaDriver.call("opening another process's memory", open, out, struct, ENABLE_PEER_ACCESS);
      return out.get(JAVA_LONG, 0);
    }
  }

  /** Copies between devices, or on one; the stream's device is the current one. */
  public static Copies copies() {
    var copy = bind("cuMemcpyDtoDAsync_v2", Functions.descriptor("(JJJJ)I"));
    return (to, from, bytes, stream) ->
        CudaDriver.call("copying between devices", copy, to, from, bytes, stream);
  }

  /** Queues a copy of so many bytes on a stream, by its handle. */
  @FunctionalInterface
  public interface Copies {
    void copy(long to, long from, long bytes, long stream);
  }

  /** Nothing may be reading any more. */
  @Override
  public void close() {
    if (opened.isEmpty()) { // perhaps by a driver that has none of these functions
      return;
    }
    cuda.makeCurrent();
    var close = bind("cuIpcCloseMemHandle", Functions.descriptor("(J)I"));
    opened
        .values()
        .forEach(base -> CudaDriver.call("closing another process's memory", close, base));
    opened.clear();
  }
}
