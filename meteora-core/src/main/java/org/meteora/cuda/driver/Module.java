package org.meteora.cuda.driver;

import static java.lang.foreign.ValueLayout.JAVA_BYTE;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;

/** Machine code on one GPU, as long as the process lives. */
public final class Module {
  private static final int OVERLAPS = 90; // compute capability

  private final Cuda cuda;
  private final long handle;

  private Module(Cuda cuda, long handle) {
    this.cuda = cuda;
    this.handle = handle;
  }

  /** Loads machine code or PTX. */
  public static Module load(Cuda cuda, byte[] code) {
    cuda.makeCurrent();
    try (var arena = Arena.ofConfined()) {
      var image = arena.allocate(code.length + 1L, 16);
      MemorySegment.copy(code, 0, image, JAVA_BYTE, 0, code.length);
      return new Module(
          cuda, CudaDriver.pointer("loading kernels", CudaDriver.MODULE_LOAD, image.address()));
    }
  }

  /** A kernel by its name in the source. */
  public Kernel kernel(String name) {
    try (var arena = Arena.ofConfined()) {
      var text = arena.allocateFrom(name).address();
      return new Kernel(
          name,
          CudaDriver.pointer("finding kernel " + name, CudaDriver.MODULE_FUNCTION, handle, text),
          cuda.capability() >= OVERLAPS);
    }
  }
}
