package org.meteora.cuda.kernel;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.ConcurrentHashMap;
import java.util.function.Supplier;
import org.meteora.UserException;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Module;
import org.meteora.cuda.driver.Nvrtc;
import org.meteora.cuda.driver.Shape;
import org.meteora.cuda.driver.Stream;
import org.meteora.io.CacheFolders;

/**
 * Whether kernels of our own run on a GPU: a small one is compiled, loaded and run there. It fails
 * without a compiler, with a driver that is older than the compiler's code or than what the
 * launches need, and on a GPU that the compiler does not know.
 */
public final class KernelSupport {
  private static final int NUMBER = 42;

  private static final Nvrtc.Source SOURCE =
      new Nvrtc.Source(
          """
          struct Written { int* to; int number; };
          extern "C" __global__ void write(const __grid_constant__ Written p) { *p.to = p.number; }
          """,
          Map.of());

  private static final Map<Integer, Optional<String>> REFUSALS = new ConcurrentHashMap<>();

  /** Mirrors the struct of this name in the source. */
  record Written(long to, int number) {}

  private KernelSupport() {}

  /** Why kernels of our own do not run on a GPU; empty where they do. Asked once a process. */
  public static Optional<String> refusal(int device) {
    return REFUSALS.computeIfAbsent(device, index -> refusal(() -> Cuda.device(index), Nvrtc::get));
  }

  static Optional<String> refusal(Supplier<Cuda> gpu, Supplier<Nvrtc> compiler) {
    try {
      var nvrtc = compiler.get();
      var cuda = gpu.get();
      cuda.requireKernels();
      cuda.makeCurrent();
      var code = nvrtc.compile(SOURCE, List.of(), cuda.capability(), CacheFolders.kernels());
      var stream = Stream.LIBTORCH;
      try (var memory = cuda.allocateZeroed(4, stream)) {
        Module.load(cuda, code)
            .kernel("write")
            .launch(Shape.of(1, 1, 1, 1), new Written(memory.address(), NUMBER))
            .on(stream);
        var bytes = ByteBuffer.wrap(cuda.download(memory.address(), 4, stream));
        int written = bytes.order(ByteOrder.nativeOrder()).getInt();
        return written == NUMBER
            ? Optional.empty()
            : Optional.of("a kernel wrote " + written + " instead of " + NUMBER);
      }
    } catch (UserException e) {
      return Optional.of(e.getMessage());
    }
  }
}
