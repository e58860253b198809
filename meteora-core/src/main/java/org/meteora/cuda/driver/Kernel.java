package org.meteora.cuda.driver;

import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.ref.Reference;

/** A function of a loaded module that takes one struct by value. */
public final class Kernel {
  private static final int CLUSTER_DIMENSION = 4;
  private static final int PROGRAMMATIC_STREAM_SERIALIZATION = 6;

  private final String name;
  private final long function;

  Kernel(String name, long function) {
    this.name = name;
    this.function = function;
  }

  /** Lets blocks use more dynamic shared memory than the usual 48 KiB. */
  public void allowShared(int bytes) {
    CudaDriver.call(
        "reserving shared memory for " + name, CudaDriver.FUNCTION_ATTRIBUTE, function, 8, bytes);
  }

  /**
   * A launch made ready: shape and argument are laid out once, {@link Launch#on} only calls the
   * driver.
   *
   * @param argument mirrors the kernel's parameter, see {@link CStruct}
   */
  public Launch launch(Shape shape, Record argument) {
    return new Launch(this, shape, argument);
  }

  /** See {@link #launch}. Its memory lives as long as it is reachable. */
  public static final class Launch implements Work {
    /** Bytes of a CUlaunchAttribute. */
    private static final int ATTRIBUTE = 72;

    private final Kernel kernel;
    private final MemorySegment config;
    private final MemorySegment parameters;

    private Launch(Kernel kernel, Shape shape, Record argument) {
      this.kernel = kernel;
      var arena = Arena.ofAuto();
      var struct = CStruct.of(argument.getClass());
      var value = arena.allocate(struct.size(), Math.max(16, struct.alignment()));
      struct.write(argument, value, 0);
      this.parameters = arena.allocate(8 + 8, 8);
      parameters.set(JAVA_LONG, 0, value.address());
      this.config = arena.allocate(56 + 2 * ATTRIBUTE, 16);
      int[] numbers = {shape.x(), shape.y(), shape.z(), shape.threads(), 1, 1, shape.shared()};
      for (var i = 0; i < numbers.length; i++) {
        config.set(JAVA_INT, 4L * i, numbers[i]);
      }
      config.set(JAVA_LONG, 40, config.address() + 56);
      var attributes = 0;
      if (shape.overlap()) {
        attribute(attributes++, PROGRAMMATIC_STREAM_SERIALIZATION, 1);
      }
      if (shape.cluster() > 1) {
        attribute(attributes++, CLUSTER_DIMENSION, shape.cluster(), 1, 1);
      }
      config.set(JAVA_INT, 48, attributes);
    }

    private void attribute(int number, int id, int... value) {
      var at = 56L + number * ATTRIBUTE;
      config.set(JAVA_INT, at, id);
      for (var i = 0; i < value.length; i++) {
        config.set(JAVA_INT, at + 8 + 4L * i, value[i]);
      }
    }

    /** Queues the launch. */
    @Override
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
