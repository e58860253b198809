package org.meteora.cuda;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.Arena;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import org.meteora.UserException;
import org.meteora.torch.Dtype;

/**
 * The kernels of {@code meteora.cu}, compiled for one GPU and one set of constants; loaded once a
 * process.
 */
public final class Kernels {
  /**
   * What the kernels are specialised to.
   *
   * @param dtype f32, f16 or bf16
   * @param topK adapters per token, 1…8
   * @param maxAdapters 1…256
   * @param headDim size of an attention head; 0 leaves out what only a decode step needs
   * @param group query heads that one attention block serves, 1…4; 0 without a step
   */
  public record Constants(Dtype dtype, int topK, int maxAdapters, int headDim, int group) {
    public Constants {
      if (dtype != Dtype.F32 && dtype != Dtype.F16 && dtype != Dtype.BF16) {
        throw new UserException("CUDA kernels know f32, f16 and bf16, not " + dtype.label());
      }
      if (topK < 1 || topK > 8) {
        throw new UserException(
            "the fused CUDA path takes 1 to 8 adapters per token, not "
                + topK
                + " (--routing-top-k)");
      }
      if (maxAdapters < 1 || maxAdapters > 256) {
        throw new UserException("the fused CUDA path takes up to 256 adapters, not " + maxAdapters);
      }
      maxAdapters = (maxAdapters + 31) / 32 * 32;
    }
  }

  private record Key(int device, Constants constants) {}

  private static final Map<Key, Kernels> LOADED = new ConcurrentHashMap<>();

  private final Cuda cuda;
  private final Constants constants;
  private final long module;
  private final Map<String, Kernel> kernels = new HashMap<>();

  private Kernels(Cuda cuda, Constants constants) {
    this.cuda = cuda;
    this.constants = constants;
    cuda.makeCurrent();
    var options =
        List.of(
            "-DDTYPE="
                + (constants.dtype() == Dtype.F32 ? 0 : constants.dtype() == Dtype.F16 ? 1 : 2),
            "-DTOPK=" + constants.topK(),
            "-DMAXN=" + constants.maxAdapters(),
            "-DHEAD_DIM=" + constants.headDim(),
            "-DGROUP=" + constants.group());
    this.module =
        Nvrtc.load(Nvrtc.get().compile(source(), options, cuda.capability(), Nvrtc.cacheFolder()));
  }

  /**
   * The kernels for these constants, compiled at the first call on a machine (a second or two),
   * loaded at the first in a process.
   *
   * @throws UserException without NVRTC
   */
  public static Kernels of(Cuda cuda, Constants constants) {
    return LOADED.computeIfAbsent(
        new Key(cuda.index(), constants), key -> new Kernels(cuda, constants));
  }

  static String source() {
    try (var in = Kernels.class.getResourceAsStream("meteora.cu")) {
      if (in == null) {
        throw new IllegalStateException(
            "the resource org/meteora/cuda/meteora.cu is missing from the class path");
      }
      return new String(in.readAllBytes(), StandardCharsets.UTF_8);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  public Cuda cuda() {
    return cuda;
  }

  public Constants constants() {
    return constants;
  }

  /** A kernel by its name in the source. */
  public synchronized Kernel get(String name) {
    return kernels.computeIfAbsent(
        name,
        n -> {
          try (var arena = Arena.ofConfined()) {
            return new Kernel(
                n,
                CudaDriver.pointer(
                    "finding kernel " + n,
                    CudaDriver.MODULE_FUNCTION,
                    module,
                    arena.allocateFrom(n).address()));
          }
        });
  }
}
