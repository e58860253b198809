package org.meteora.parallel;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.invoke.MethodHandle;
import org.meteora.UserException;
import org.meteora.foreign.Functions;

/**
 * The functions of MPI that are used, of Open MPI or MPICH. MPI's handles are addresses in the one
 * and ints in the other; everything else is alike. All calls come from one thread.
 */
final class Mpi {
  /** Numbers in one call: counts are ints. */
  private static final long PIECE = 1L << 28;

  private static final String[] OPEN_MPI = {"libmpi.so.40", "libmpi.so.80", "libmpi.so"};
  private static final String[] MPICH = {"libmpich.so.12", "libmpi.so.12", "libmpi.so"};

  private final SymbolLookup library;
  private final boolean openMpi;
  private final Object world;
  private final Object floats;
  private final Object bytes;
  private final Object sum;
  private final MemorySegment inPlace;
  private final MethodHandle allReduce;
  private final MethodHandle reduceScatter;
  private final MethodHandle allGather;
  private final MethodHandle reduce;
  private final MethodHandle broadcast;

  private Mpi(SymbolLookup library) {
    this.library = library;
    openMpi = library.find("ompi_mpi_comm_world").isPresent();
    // MPICH: the values of mpi.h, the same in all of its relatives
    world = handle("ompi_mpi_comm_world", 0x44000000);
    floats = handle("ompi_mpi_float", 0x4c00040a);
    bytes = handle("ompi_mpi_byte", 0x4c00010d);
    sum = handle("ompi_mpi_op_sum", 0x58000003);
    inPlace = MemorySegment.ofAddress(openMpi ? 1 : -1);
    allReduce = bind("MPI_Allreduce", "PPIHHH");
    reduceScatter = bind("MPI_Reduce_scatter_block", "PPIHHH");
    allGather = bind("MPI_Allgather", "PIHPIHH");
    reduce = bind("MPI_Reduce", "PPIHHIH");
    broadcast = bind("MPI_Bcast", "PIHIH");
  }

  private Object handle(String symbol, int value) {
    return openMpi ? (Object) library.find(symbol).orElseThrow() : (Object) value;
  }

  /**
   * Loads and starts MPI.
   *
   * @throws UserException when there is none, nobody tells it of the processes, or it knows another
   *     number of them than {@code launch}
   */
  static Mpi start(Launch launch) {
    if (launch.manager() == Launch.Manager.NONE) {
      // asked all the same, Open MPI ends the process with a page of text
      throw new UserException(unmanaged(launch));
    }
    leaveSignalsAlone();
    var names = launch.manager() == Launch.Manager.PMI ? MPICH : OPEN_MPI;
    var mpi =
        Functions.library(names)
            .or(() -> Functions.library(names == MPICH ? OPEN_MPI : MPICH))
            .map(Mpi::new)
            .orElseThrow(
                () ->
                    new UserException(
                        "several processes on the CPU need MPI, and no libmpi.so is found: install"
                            + " Open MPI or MPICH (Debian: apt-get install openmpi-bin)"));
    mpi.call(mpi.bind("MPI_Init", "PP"), MemorySegment.NULL, MemorySegment.NULL);
    int size = mpi.integer("MPI_Comm_size");
    int rank = mpi.integer("MPI_Comm_rank");
    if (size != launch.size() || rank != launch.rank()) {
      throw new UserException(
          "this is process %s of %s, but MPI (%s) says %s of %s: on the CPU start the"
              + " processes with the mpirun of that MPI, as in mpirun -n %2$s meteora …",
          launch.rank(), launch.size(), mpi.openMpi ? "Open MPI" : "MPICH", rank, size);
    }
    return mpi;
  }

  private static String unmanaged(Launch launch) {
    var here = "processes on the CPU are joined by MPI, and ";
    return launch.starter() == Launch.Starter.SLURM
        ? here
            + "srun has not told it of them: srun --mpi=pmi2 meteora … (MPICH), srun --mpi=pmix"
            + " meteora … (Open MPI; srun --mpi=list shows what there is), or mpirun in its place"
        : here
            + "torchrun does not tell it of them: mpirun -n %1$s meteora …, or meteora … --processes %1$s"
                .formatted(launch.size());
  }

  /**
   * UCX, by which MPICH and Open MPI move data, takes SIGSEGV for a crash unless this is set; the
   * JVM raises it at every safepoint, and the process would be ended by it.
   */
  private static void leaveSignalsAlone() {
    var setenv = Functions.bind("setenv", "(AAI)I");
    try (var arena = Arena.ofConfined()) {
      Functions.call(setenv, arena.allocateFrom("UCX_ERROR_SIGNALS"), arena.allocateFrom(""), 1);
    }
  }

  /** {@code I} is an int, {@code P} a pointer, {@code H} one of MPI's handles. */
  private MethodHandle bind(String name, String signature) {
    var letters = signature.replace('P', 'A').replace('H', openMpi ? 'A' : 'I');
    return Functions.bind(
        library.find(name).orElseThrow(() -> new UserException("this MPI has no " + name)),
        "(" + letters + ")I");
  }

  private void call(MethodHandle function, Object... arguments) {
    int code = (int) Functions.call(function, arguments);
    if (code != 0) {
      throw new UserException("MPI: a call failed with error " + code);
    }
  }

  private int integer(String name) {
    return (int) Functions.written(out -> call(bind(name, "HP"), world, out));
  }

  /** Sums {@code count} float32 numbers over all processes, in place. */
  void sum(MemorySegment data, long count) {
    for (long at = 0; at < count; at += PIECE) {
      int some = (int) Math.min(PIECE, count - at);
      call(allReduce, inPlace, data.asSlice(at * Float.BYTES), some, floats, sum, world);
    }
  }

  /**
   * Process {@code to} gets the sum of {@code count} float32 numbers.
   *
   * @param result not a part of {@code data}: MPICH 4.0 crashes where it is to be in place; used in
   *     process {@code to} alone
   */
  void reduce(MemorySegment data, MemorySegment result, long count, int to) {
    for (long at = 0; at < count; at += PIECE) {
      int some = (int) Math.min(PIECE, count - at);
      var target = result.equals(MemorySegment.NULL) ? result : result.asSlice(at * Float.BYTES);
      call(reduce, data.asSlice(at * Float.BYTES), target, some, floats, sum, to, world);
    }
  }

  /**
   * Sums {@code count} float32 numbers of every process's part.
   *
   * @param data all parts, one after another
   * @param part gets this process's; not a part of {@code data}
   */
  void reduceScatter(MemorySegment data, MemorySegment part, long count) {
    if (count > Integer.MAX_VALUE) {
      throw new UserException("MPI cannot move " + count + " numbers at once");
    }
    call(reduceScatter, data, part, (int) count, floats, sum, world);
  }

  /**
   * @param part this process's {@code size} bytes; may be its place in {@code all}
   * @param all gets the parts of all processes
   */
  void allGather(MemorySegment part, MemorySegment all, long size, int rank) {
    boolean floating = size % Float.BYTES == 0;
    long count = floating ? size / Float.BYTES : size;
    if (count > Integer.MAX_VALUE) {
      throw new UserException("MPI cannot move " + size + " bytes at once");
    }
    var type = floating ? floats : bytes;
    boolean there = part.address() == all.address() + rank * size;
    call(allGather, there ? inPlace : part, (int) count, type, all, (int) count, type, world);
  }

  /** Replaces {@code size} bytes by the first process's. */
  void broadcast(MemorySegment data, long size) {
    for (long at = 0; at < size; at += PIECE) {
      call(broadcast, data.asSlice(at), (int) Math.min(PIECE, size - at), bytes, 0, world);
    }
  }

  /** The first process's text, at all; at most 255 bytes. */
  String broadcast(String ofFirst) {
    try (var arena = Arena.ofConfined()) {
      var text = arena.allocate(256);
      text.setString(0, ofFirst);
      broadcast(text, 256);
      return text.getString(0);
    }
  }

  void finish() {
    call(bind("MPI_Finalize", ""));
  }
}
