package org.meteora.backend.cpu;

import ai.djl.ndarray.NDArray;
import org.meteora.model.Pass;
import org.meteora.model.RmsNorm;
import org.meteora.model.TensorOps;

/**
 * What lies between the products of a training pass on a {@link CpuTape}: norms and rotations in
 * Java, forward and backward, where libtorch records a dozen operations for each; the rest by
 * tensor operations.
 */
final class CpuTapeOps extends TensorOps {
  private final CpuTape tape;

  CpuTapeOps(CpuTape tape) {
    this.tape = tape;
  }

  @Override
  public NDArray norm(NDArray x, RmsNorm norm) {
    return tape.norm(x, norm);
  }

  @Override
  public Heads rotate(NDArray queries, NDArray keys, NDArray values, Pass pass, int layer) {
    tape.rotate(queries, pass.angles());
    tape.rotate(keys, pass.angles());
    int headDim = (int) pass.angles().cos().getShape().get(3);
    return behindTheCache(
        heads(queries, headDim), heads(keys, headDim), heads(values, headDim), pass, layer);
  }
}
