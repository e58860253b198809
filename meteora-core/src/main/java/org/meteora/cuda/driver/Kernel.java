package org.meteora.cuda.driver;

import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;

/** A function of a loaded module that takes one struct by value. */
public final class Kernel {
  private static final int CLUSTER_DIMENSION = 4;
  private static final int PROGRAMMATIC_STREAM_SERIALIZATION = 6;

  private final String name;
  private final String launching;
  private final long function;
  private final boolean overlaps;
  private int allowed = 48 << 10;

  /**
   * @param overlaps whether the device knows programmatic dependent launch
   */
  Kernel(String name, long function, boolean overlaps) {
    this.name = name;
    this.launching = "launching " + name;
    this.function = function;
    this.overlaps = overlaps;
  }

  /** Lets blocks use more dynamic shared memory than the usual 48 KiB, or than so far. */
  private synchronized void allowShared(int bytes) {
    if (bytes > allowed) {
      CudaDriver.call(
          "reserving shared memory for " + name, CudaDriver.FUNCTION_ATTRIBUTE, function, 8, bytes);
      allowed = bytes;
    }
  }

  /**
   * A launch made ready: the argument is laid out once, {@link Launch#on} copies it and calls the
   * driver.
   *
   * @param argument mirrors the kernel's parameter, see {@link CStruct}
   */
  public Launch launch(Shape shape, Record argument) {
    allowShared(shape.shared());
    return new Launch(this, shape, argument);
  }

  public static final class Launch implements Work {
    /** Bytes of a CUlaunchConfig, and of a CUlaunchAttribute behind it. */
    private static final int CONFIG = 56;

    private static final int ATTRIBUTE = 72;

    private final Kernel kernel;
    private final Shape shape;
    private final long alignment;

    // on the heap: native memory is taken for the call alone, and nobody has to free it
    private final MemorySegment argument;

    private Launch(Kernel kernel, Shape shape, Record argument) {
      this.kernel = kernel;
      this.shape = shape;
      var struct = CStruct.of(argument.getClass());
      this.alignment = Math.max(16, struct.alignment());
      this.argument = MemorySegment.ofArray(new long[(struct.size() + 7) / 8]);
      struct.write(argument, this.argument, 0);
    }

    private MemorySegment config(Arena arena, Stream stream) {
      var config = arena.allocate(CONFIG + 2 * ATTRIBUTE, 16);
      int[] numbers = {shape.x(), shape.y(), shape.z(), shape.threads(), 1, 1, shape.shared()};
      MemorySegment.copy(numbers, 0, config, JAVA_INT, 0, numbers.length);
      config.set(JAVA_LONG, 32, stream.handle());
      config.set(JAVA_LONG, 40, config.address() + CONFIG);
      var attributes = 0;
      if (shape.overlap() && kernel.overlaps) {
        attribute(config, attributes++, PROGRAMMATIC_STREAM_SERIALIZATION, 1);
      }
      if (shape.cluster() > 1) {
        attribute(config, attributes++, CLUSTER_DIMENSION, shape.cluster(), 1, 1);
      }
      config.set(JAVA_INT, 48, attributes);
      return config;
    }

    private static void attribute(MemorySegment config, int number, int id, int... value) {
      var at = CONFIG + number * ATTRIBUTE;
      config.set(JAVA_INT, at, id);
      MemorySegment.copy(value, 0, config, JAVA_INT, at + 8, value.length);
    }

    /** The kernel's name. */
    @Override
    public String toString() {
      return kernel.name;
    }

    /** Queues the launch; the driver has copied the argument when this returns. */
    @Override
    public void on(Stream stream) {
      try (var arena = Arena.ofConfined()) {
        var value = arena.allocate(argument.byteSize(), alignment);
        value.copyFrom(argument);
        var parameters = arena.allocateFrom(JAVA_LONG, value.address()).address();
        var config = config(arena, stream).address();
        CudaDriver.check(
            kernel.launching,
            () -> (int) CudaDriver.LAUNCH.invokeExact(config, kernel.function, parameters, 0L));
      }
    }
  }
}
