package org.meteora.parallel;

import ai.djl.ndarray.NDArray;
import java.util.List;
import java.util.function.LongConsumer;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Stream;
import org.meteora.tensor.Ops;

/** Tensors on one GPU a process, moved by NCCL on libtorch's stream. */
final class NcclCollective extends ControlledCollective {
  /** Where libtorch queues its work. */
  private static final long LIBTORCH = 0;

  private final Nccl nccl;
  private final Cuda cuda;
  private Aside aside;

  /**
   * @param nccl its communicator has all processes
   */
  NcclCollective(Nccl nccl, Cuda cuda, Control control) {
    super(control);
    this.nccl = nccl;
    this.cuda = cuda;
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
  public Queued allGatherAside(NDArray part, NDArray buffer) {
    requireParts(buffer, part);
    return aside(
        stream ->
            nccl.allGather(Ops.dataPointer(part), Ops.dataPointer(buffer), bytes(part), stream));
  }

  @Override
  public Queued reduceAside(NDArray buffer, int to) {
    return aside(
        stream ->
            nccl.reduce(
                Ops.dataPointer(buffer), buffer.getShape().size(), Ops.dtype(buffer), to, stream));
  }

  private Queued aside(LongConsumer work) {
    if (aside == null) {
      aside = new Aside(cuda, Stream.createUrgent(cuda));
    }
    return aside.queue(work);
  }

  @Override
  public Constants constants(List<NDArray> parts) {
    return PeerConstants.of(this, cuda, parts).orElseGet(() -> super.constants(parts));
  }

  @Override
  public void broadcast(NDArray buffer) {
    nccl.broadcast(Ops.dataPointer(buffer), bytes(buffer), 0, LIBTORCH);
  }

  @Override
  public void close() {
    super.close();
    nccl.close();
    if (aside != null) {
      aside.close();
    }
  }
}
