package org.meteora.backend;

import ai.djl.Device;
import ai.djl.ndarray.NDArray;
import java.util.List;
import org.meteora.backend.cuda.CudaBackend;
import org.meteora.io.HostMemory;
import org.meteora.model.Backend;
import org.meteora.model.LayerOps;
import org.meteora.model.TensorOps;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.GatedForward;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.GatedLinear.Output;
import org.meteora.moe.forward.PortableForward;
import org.meteora.tensor.Devices;

/**
 * Everything by libtorch's operations, inference and training: what a GPU computes on which kernels
 * of our own do not run.
 */
final class TensorBackend implements Backend {
  /**
   * Up to this many tokens the chosen adapters' rows are gathered; with more all are multiplied.
   */
  private static final int GATHER_TOKENS = 16;

  private final Device device;
  private final String reason;

  /**
   * @param reason why nothing faster runs here
   */
  TensorBackend(Device device, String reason) {
    this.device = device;
    this.reason = reason;
  }

  @Override
  public LayerOps ops() {
    return TensorOps.INSTANCE;
  }

  @Override
  public Memory memory(long wanted) {
    return device.isGpu()
        ? CudaBackend.memory(device.getDeviceId(), wanted)
        : new Memory("this machine", HostMemory.available());
  }

  @Override
  public GatedForward of(List<GatedLinear> linears) {
    return new TensorForward(linears);
  }

  @Override
  public String toString() {
    return Devices.name(device)
        + ": all by tensor operations, without kernels of our own: "
        + reason;
  }

  private static final class TensorForward extends PortableForward {
    TensorForward(List<GatedLinear> linears) {
      super(linears, LOOP);
    }

    @Override
    protected Output best(GatedLinear linear, NDArray x, ForwardContext context) {
      long tokens = x.getShape().size() / linear.weight().getShape().get(1);
      return linear.formula(
          x, context, context.training() || tokens > GATHER_TOKENS ? MASKED : GATHER);
    }
  }
}
