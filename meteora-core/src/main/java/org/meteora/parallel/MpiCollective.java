package org.meteora.parallel;

import ai.djl.ndarray.NDArray;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/** Tensors in host memory, moved by MPI. Sums are in float32. */
final class MpiCollective extends ControlledCollective {
  private final Mpi mpi;

  MpiCollective(Mpi mpi, Control control) {
    super(control);
    this.mpi = mpi;
  }

  private static MemorySegment memory(NDArray x) {
    return MemorySegment.ofAddress(Ops.dataPointer(x)).reinterpret(bytes(x));
  }

  private static void requireFloats(NDArray x) {
    if (Ops.dtype(x) != Dtype.F32) {
      throw new IllegalArgumentException("on the CPU sums are of float32, not " + Ops.dtype(x));
    }
  }

  @Override
  public void sum(NDArray buffer) {
    requireFloats(buffer);
    mpi.sum(memory(buffer), buffer.getShape().size());
  }

  @Override
  public void reduceScatter(NDArray buffer, NDArray part) {
    requireFloats(buffer);
    requireParts(buffer, part);
    long count = part.getShape().size();
    try (var arena = Arena.ofConfined()) {
      // MPI does not take a result inside its input
      var own = arena.allocate(bytes(part), 64);
      mpi.reduceScatter(memory(buffer), own, count);
      memory(part).copyFrom(own);
    }
  }

  @Override
  public Queued reduceAside(NDArray buffer, int to) {
    requireFloats(buffer);
    long count = buffer.getShape().size();
    try (var arena = Arena.ofConfined()) {
      var result = rank() == to ? arena.allocate(bytes(buffer), 64) : MemorySegment.NULL;
      mpi.reduce(memory(buffer), result, count, to);
      if (rank() == to) {
        memory(buffer).copyFrom(result);
      }
    }
    return () -> {};
  }

  @Override
  public void allGather(NDArray part, NDArray buffer) {
    requireParts(buffer, part);
    mpi.allGather(memory(part), memory(buffer), bytes(part), rank());
  }

  @Override
  public void broadcast(NDArray buffer) {
    mpi.broadcast(memory(buffer), bytes(buffer));
  }

  @Override
  public void close() {
    super.close();
    mpi.finish();
  }
}
