package org.meteora.backend;

import ai.djl.ndarray.NDManager;
import org.meteora.backend.cpu.CpuBackend;
import org.meteora.backend.cuda.CudaBackend;
import org.meteora.backend.cuda.CudaDecoding;
import org.meteora.generate.DecodeSession;
import org.meteora.generate.ModelSession;
import org.meteora.model.Backend;
import org.meteora.model.Llama;
import org.meteora.moe.Flags;
import org.meteora.tensor.Dtype;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** The one place where it is decided what computes a model. */
public final class Backends {
  private static final Logger LOG = LoggerFactory.getLogger(Backends.class);

  private Backends() {}

  /**
   * The backend for parameters of this dtype in this manager's device memory; a line in the log
   * says which.
   *
   * @param manager owns the model's parameters
   */
  public static Backend of(NDManager manager, Dtype dtype) {
    return of(manager, dtype, Flags.AUTO);
  }

  /**
   * As {@link #of(NDManager, Dtype)}.
   *
   * @param flags what they ask for instead is said in the log
   */
  public static Backend of(NDManager manager, Dtype dtype, Flags flags) {
    var backend =
        manager.getDevice().isGpu() ? new CudaBackend(manager, dtype) : new CpuBackend(dtype);
    var asked =
        switch (flags.mode()) {
          case AUTO -> "";
          case FUSED ->
              manager.getDevice().isGpu()
                  ? ""
                  : "; the fused kernels, which the flags ask for, need a CUDA device";
          default -> "; the flags ask for the form " + flags.mode();
        };
    LOG.info("{}, {}{}", backend, dtype.label(), asked);
    return backend;
  }

  /** What runs a model's decode steps. */
  public static DecodeSession.Provider decoding(Llama model) {
    return model.manager().getDevice().isGpu() ? new CudaDecoding(model) : ModelSession.of(model);
  }
}
