package org.meteora.parallel;

import ai.djl.ndarray.NDArray;
import java.util.List;
import org.meteora.tensor.Ops;

/** What goes over the connection to the first process, alike for NCCL and MPI. */
abstract class ControlledCollective implements Collective {
  private final Control control;

  ControlledCollective(Control control) {
    this.control = control;
  }

  @Override
  public int rank() {
    return control.rank();
  }

  @Override
  public int size() {
    return control.size();
  }

  @Override
  public List<byte[]> gather(byte[] mine) {
    return control.gather(mine);
  }

  @Override
  public byte[] broadcast(byte[] ofFirst) {
    return control.broadcast(ofFirst);
  }

  @Override
  public Messages messages() {
    return control;
  }

  @Override
  public void close() {
    control.close();
  }

  static long bytes(NDArray x) {
    return x.getShape().size() * Ops.dtype(x).bytes();
  }

  void requireParts(NDArray buffer, NDArray part) {
    if (buffer.getShape().size() != size() * part.getShape().size()
        || Ops.dtype(buffer) != Ops.dtype(part)) {
      throw new IllegalArgumentException(
          part.getShape() + " is not one of " + size() + " equal parts of " + buffer.getShape());
    }
  }
}
