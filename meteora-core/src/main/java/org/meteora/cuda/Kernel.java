package org.meteora.cuda;

import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.ref.Reference;

/** A function of a loaded module that takes one struct by value. */
public final class Kernel {
  private static final int PROGRAMMATIC_STREAM_SERIALIZATION = 6;

  private final String name;
  private final long function;

  Kernel(String name, long function) {
    this.name = name;
    this.function = function;
  }

  /** Lets blocks use more dynamic shared memory than the usual 48 KiB. */
  void allowShared(int bytes) {
    CudaDriver.call(
        "reserving shared memory for " + name, CudaDriver.FUNCTION_ATTRIBUTE, function, 8, bytes);
  }

  /**
   * A launch made ready: shape and argument are laid out once, {@link Launch#on} only calls the
   * driver.
   *
   * @param overlap lets the blocks start before the kernel in front has ended (programmatic
   *     dependent launch); only for kernels that wait for it themselves
   */
  public Launch launch(
      int gridX, int gridY, int gridZ, int block, int shared, boolean overlap, Struct argument) {
    return new Launch(this, gridX, gridY, gridZ, block, shared, overlap, argument);
  }

  /** See {@link #launch}. Its memory lives as long as it is reachable. */
  public static final class Launch {
    private final Kernel kernel;
    private final MemorySegment config;
    private final MemorySegment parameters;

    private Launch(
        Kernel kernel,
        int x,
        int y,
        int z,
        int block,
        int shared,
        boolean overlap,
        Struct argument) {
      this.kernel = kernel;
      var arena = Arena.ofAuto();
      var value = argument.copyTo(arena);
      this.parameters = arena.allocate(8 + 8, 8);
      parameters.set(JAVA_LONG, 0, value.address());
      this.config = arena.allocate(56 + 72, 16);
      int[] shape = {x, y, z, block, 1, 1, shared};
      for (var i = 0; i < shape.length; i++) {
        config.set(JAVA_INT, 4L * i, shape[i]);
      }
      config.set(JAVA_LONG, 40, config.address() + 56);
      config.set(JAVA_INT, 48, overlap ? 1 : 0);
      config.set(JAVA_INT, 56, PROGRAMMATIC_STREAM_SERIALIZATION);
      config.set(JAVA_INT, 64, 1);
    }

    /** Queues the launch. */
    public void on(Stream stream) {
      config.set(JAVA_LONG, 32, stream.handle());
      try {
        var code =
            (int)
                CudaDriver.LAUNCH.invokeExact(
                    config.address(), kernel.function, parameters.address(), 0L);
        if (code != 0) {
          CudaDriver.check("launching " + kernel.name, code);
        }
      } catch (RuntimeException e) {
        throw e;
      } catch (Throwable e) {
        throw new IllegalStateException(e);
      } finally {
        Reference.reachabilityFence(this); // the driver gets addresses of its memory alone
      }
    }
  }
}
