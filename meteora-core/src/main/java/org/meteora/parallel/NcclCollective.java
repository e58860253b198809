package org.meteora.parallel;

import ai.djl.ndarray.NDArray;
import org.meteora.tensor.Ops;

/** Tensors on one GPU a process, moved by NCCL on libtorch's stream. */
final class NcclCollective extends ControlledCollective {
  /** Where libtorch queues its work. */
  private static final long LIBTORCH = 0;

  private final Nccl nccl;

  /**
   * @param nccl its communicator has all processes
   */
  NcclCollective(Nccl nccl, Control control) {
    super(control);
    this.nccl = nccl;
  }

  @Override
  public void sum(NDArray buffer) {
    nccl.sum(Ops.dataPointer(buffer), buffer.getShape().size(), Ops.dtype(buffer), LIBTORCH);
  }

  @Override
  public void reduceScatter(NDArray buffer, NDArray part) {
    requireParts(buffer, part);
    nccl.reduceScatter(
        Ops.dataPointer(buffer),
        Ops.dataPointer(part),
        part.getShape().size(),
        Ops.dtype(buffer),
        LIBTORCH);
  }

  @Override
  public void allGather(NDArray part, NDArray buffer) {
    requireParts(buffer, part);
    nccl.allGather(Ops.dataPointer(part), Ops.dataPointer(buffer), bytes(part), LIBTORCH);
  }

  @Override
  public void broadcast(NDArray buffer) {
    nccl.broadcast(Ops.dataPointer(buffer), bytes(buffer), 0, LIBTORCH);
  }

  @Override
  public void close() {
    super.close();
    nccl.close();
  }
}
