package org.meteora.parallel;

import static java.lang.foreign.ValueLayout.ADDRESS;
import static java.lang.foreign.ValueLayout.JAVA_BYTE;
import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.invoke.MethodHandle;
import org.meteora.UserException;
import org.meteora.foreign.Functions;
import org.meteora.tensor.Dtype;

/**
 * The functions of NCCL that are used, with one communicator. Work is queued on a stream; a call
 * returns before it is done.
 */
final class Nccl {
  /** Bytes of an {@code ncclUniqueId}. */
  static final int ID_BYTES = 128;

  private static final MemoryLayout ID =
      MemoryLayout.structLayout(MemoryLayout.sequenceLayout(ID_BYTES, JAVA_BYTE));
  private static final int SUM = 0;
  private static final int UINT8 = 1;
  private static final int FLOAT32 = 7;
  private static final int BFLOAT16 = 9;
  private static final int SUCCESS = 0;
  private static final int IN_PROGRESS = 7;

  private record Function(String name, MethodHandle handle) {}

  private final SymbolLookup library;
  private final Function allReduce;
  private final Function reduceScatter;
  private final Function allGather;
  private final Function broadcast;
  private final Function reduce;
  private final Function destroy;
  private final Function errorString;
  private long communicator;

  /**
   * @param path {@code libnccl.so.2}, a name or a path
   */
  Nccl(String path) {
    library =
        Functions.library(path)
            .orElseThrow(
                () ->
                    new UserException(
                        "several GPUs need NCCL, and %s cannot be loaded: pip install"
                            + " nvidia-nccl-cu13 (or -cu12) beside PyTorch",
                        path));
    allReduce = bind("ncclAllReduce", "(JJJIIJJ)I");
    reduceScatter = bind("ncclReduceScatter", "(JJJIIJJ)I");
    allGather = bind("ncclAllGather", "(JJJIJJ)I");
    broadcast = bind("ncclBroadcast", "(JJJIIJJ)I");
    reduce = bind("ncclReduce", "(JJJIIIJJ)I");
    destroy = bind("ncclCommDestroy", "(J)I");
    errorString = bind("ncclGetErrorString", "(I)A");
  }

  private MemorySegment find(String name) {
    return library.find(name).orElseThrow(() -> new UserException("this NCCL has no " + name));
  }

  private Function bind(String name, String signature) {
    return new Function(name, Functions.bind(find(name), signature));
  }

  /** A new id, which all processes of a communicator must have. */
  byte[] uniqueId() {
    try (var arena = Arena.ofConfined()) {
      var id = arena.allocate(ID);
      call(bind("ncclGetUniqueId", "(A)I"), id);
      return id.toArray(JAVA_BYTE);
    }
  }

  /** Joins the communicator; returns when all have. The device is the current one. */
  void join(byte[] id, int rank, int size) {
    try (var arena = Arena.ofConfined()) {
      var struct = arena.allocate(ID);
      MemorySegment.copy(id, 0, struct, JAVA_BYTE, 0, ID_BYTES);
      var out = arena.allocate(JAVA_LONG);
      var type = FunctionDescriptor.of(JAVA_INT, ADDRESS, JAVA_INT, ID, JAVA_INT);
      var init = Linker.nativeLinker().downcallHandle(find("ncclCommInitRank"), type);
      call(new Function("ncclCommInitRank", init), out, size, struct, rank);
      communicator = out.get(JAVA_LONG, 0);
    }
  }

  private static int type(Dtype dtype) {
    return switch (dtype) {
      case F32 -> FLOAT32;
      case BF16 -> BFLOAT16;
      default -> throw new IllegalArgumentException("NCCL does not sum " + dtype + " here");
    };
  }

  /** Sums in place; pointers are device memory. */
  void sum(long data, long count, Dtype dtype, long stream) {
    call(allReduce, data, data, count, type(dtype), SUM, communicator, stream);
  }

  /** Sums of this process's part; {@code count} numbers a part. */
  void reduceScatter(long data, long part, long count, Dtype dtype, long stream) {
    call(reduceScatter, data, part, count, type(dtype), SUM, communicator, stream);
  }

  /** The sum of all processes' numbers, in place in process {@code to}. */
  void reduce(long data, long count, Dtype dtype, int to, long stream) {
    call(reduce, data, data, count, type(dtype), SUM, to, communicator, stream);
  }

  /** All parts of {@code size} bytes. */
  void allGather(long part, long data, long size, long stream) {
    call(allGather, part, data, size, UINT8, communicator, stream);
  }

  /** The bytes of process {@code from}, in place. */
  void broadcast(long data, long size, int from, long stream) {
    call(broadcast, data, data, size, UINT8, from, communicator, stream);
  }

  /** Leaves, when all that was queued has ended. */
  synchronized void close() {
    if (communicator != 0) {
      long ending = communicator;
      communicator = 0;
      Functions.call(destroy.handle(), ending);
    }
  }

  private void call(Function function, Object... arguments) {
    int code = (int) Functions.call(function.handle(), arguments);
    if (code != SUCCESS && code != IN_PROGRESS) {
      var text = (MemorySegment) Functions.call(errorString.handle(), code);
      throw new UserException(
          "NCCL: %s failed: %s (%s)", function.name(), text.reinterpret(256).getString(0), code);
    }
  }
}
