package org.meteora.backend;

import ai.djl.Device;
import ai.djl.ndarray.NDManager;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Optional;
import java.util.function.IntFunction;
import org.meteora.UserException;
import org.meteora.backend.cpu.CpuBackend;
import org.meteora.backend.cuda.CudaBackend;
import org.meteora.backend.cuda.CudaDecoding;
import org.meteora.backend.cuda.CudaOptimizer;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.kernel.KernelSupport;
import org.meteora.generate.DecodeSession;
import org.meteora.generate.ModelSession;
import org.meteora.model.Backend;
import org.meteora.model.Llama;
import org.meteora.model.OptimizerKernels;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardMode;
import org.meteora.tensor.Dtype;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** The one place where it is decided what computes a model. */
public final class Backends {
  private static final Logger LOG = LoggerFactory.getLogger(Backends.class);

  private Backends() {}

  /** The dtype that a model has on a device where none is asked for. */
  public static Dtype usualDtype(Device device) {
    return device.isGpu() ? Dtype.BF16 : Dtype.F32;
  }

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
    return of(manager, dtype, flags, KernelSupport::refusal);
  }

  /**
   * As {@link #of(NDManager, Dtype, Flags)}.
   *
   * @param refusal why kernels of our own do not run on a GPU; empty where they do
   */
  static Backend of(
      NDManager manager, Dtype dtype, Flags flags, IntFunction<Optional<String>> refusal) {
    var device = manager.getDevice();
    Optional<String> refused =
        device.isGpu() ? refusal.apply(device.getDeviceId()) : Optional.empty();
    boolean invariant = flags.mode() == ForwardMode.INVARIANT;
    if (invariant && !device.isGpu() && dtype != Dtype.F32) {
      throw new UserException(
          "--batch-invariant is for f32 on the CPU, not for %s there".formatted(dtype.label()));
    }
    if (invariant && refused.isPresent()) {
      throw new UserException("--batch-invariant cannot be had here: " + refused.get());
    }
    Backend backend =
        !device.isGpu()
            ? new CpuBackend(dtype, invariant)
            : refused.isEmpty()
                ? new CudaBackend(manager, dtype, invariant)
                : new TensorBackend(device, refused.get());
    var asked =
        switch (flags.mode()) {
          case AUTO, INVARIANT -> "";
          case FUSED ->
              backend instanceof CudaBackend
                  ? ""
                  : "; the fused kernels, which the flags ask for, need a CUDA device";
          default -> "; the flags ask for the form " + flags.mode();
        };
    LOG.info("{}, {}{}", backend, dtype.label(), asked);
    return backend;
  }

  /**
   * Bytes in use on a GPU, by all of its processes, or resident ones of this process; 0 when they
   * cannot be told.
   */
  public static long memoryInUse(Device device) {
    try {
      if (device.isGpu()) {
        var memory = Cuda.device(device.getDeviceId()).memory();
        return memory.total() - memory.free();
      }
      for (var line : Files.readAllLines(Path.of("/proc/self/status"))) {
        if (line.startsWith("VmRSS:")) {
          return Long.parseLong(line.replaceAll("\\D", "")) << 10;
        }
      }
    } catch (IOException | RuntimeException | LinkageError e) {
      // not Linux, or no driver to ask
    }
    return 0;
  }

  /**
   * Kernels of an optimiser for parameters in this manager's device memory; empty where there are
   * none.
   *
   * @param manager owns what they need
   * @param dtype of the model's tensors
   */
  public static Optional<OptimizerKernels> optimizer(NDManager manager, Dtype dtype) {
    return CudaOptimizer.of(dtype, manager);
  }

  /** What runs a model's decode steps. */
  public static DecodeSession.Provider decoding(Llama model) {
    // CUDA graphs replay what they captured: weights that are gathered pass by pass cannot be in
    // them
    return model.backend() instanceof CudaBackend cuda && model.frozen().isResident()
        ? new CudaDecoding(model, cuda.isInvariant())
        : ModelSession.of(model);
  }
}
