package org.meteora.cuda.kernel;

import java.util.Arrays;
import java.util.EnumMap;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.regex.Pattern;
import org.meteora.UserException;
import org.meteora.cuda.driver.CStruct;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Kernel;
import org.meteora.cuda.driver.Module;
import org.meteora.cuda.driver.Nvrtc;
import org.meteora.cuda.driver.Shape;
import org.meteora.cuda.driver.Stream;
import org.meteora.io.CacheFolders;
import org.meteora.io.Texts;
import org.meteora.nn.KvBlock;
import org.meteora.nn.Scores;
import org.meteora.tensor.Dtype;

/**
 * The kernels of {@code meteora.cu}, compiled for one GPU and one set of constants; loaded once a
 * process.
 */
public final class Kernels {
  /** Adapters a token, at most. */
  public static final int MAX_TOP_K = 8;

  public static final int MAX_ADAPTERS = 256;

  /**
   * What the kernels are specialised to.
   *
   * @param dtype f32, f16 or bf16
   * @param scores what adapters are chosen by
   * @param topK adapters per token, 1…{@link #MAX_TOP_K}
   * @param maxAdapters 1…{@link #MAX_ADAPTERS}
   * @param headDim size of an attention head; 0 leaves out what only a decode step needs
   * @param group query heads that one attention block serves, 1…4; 0 without a step
   * @param masked with the kernels of {@link MaskedProducts}, which nothing else needs
   */
  public record Constants(
      Dtype dtype,
      Scores scores,
      int topK,
      int maxAdapters,
      int headDim,
      int group,
      boolean masked) {
    public Constants {
      if (dtype != Dtype.F32 && dtype != Dtype.F16 && dtype != Dtype.BF16) {
        throw new UserException("CUDA kernels know f32, f16 and bf16, not " + dtype.label());
      }
      if (topK < 1 || topK > MAX_TOP_K) {
        throw new UserException(
            "the fused CUDA path takes 1 to %s adapters per token, not %s (--routing-top-k)"
                .formatted(MAX_TOP_K, topK));
      }
      if (maxAdapters < 1 || maxAdapters > MAX_ADAPTERS) {
        throw new UserException(
            "the fused CUDA path takes up to " + MAX_ADAPTERS + " adapters, not " + maxAdapters);
      }
      maxAdapters = (maxAdapters + 31) / 32 * 32;
    }

    public Constants(
        Dtype dtype, Scores scores, int topK, int maxAdapters, int headDim, int group) {
      this(dtype, scores, topK, maxAdapters, headDim, group, false);
    }

    /** With gates. */
    public Constants(Dtype dtype, int topK, int maxAdapters, int headDim, int group) {
      this(dtype, Scores.PRODUCT, topK, maxAdapters, headDim, group);
    }

    /** For {@link MaskedProducts}. */
    public static Constants ofMasked(Dtype dtype) {
      return new Constants(dtype, Scores.PRODUCT, 1, 1, 0, 0, true);
    }

    /** These for other scores. */
    public Constants with(Scores other) {
      return new Constants(dtype, other, topK, maxAdapters, headDim, group);
    }

    /** For all but a decode step. */
    public static Constants ofLayers(Dtype dtype, int topK, int maxAdapters) {
      return new Constants(dtype, topK, maxAdapters, 0, 0);
    }

    /** For a decode step. */
    public static Constants ofSteps(
        Dtype dtype, int topK, int maxAdapters, int heads, int kvHeads, int headDim) {
      int perKv = heads / kvHeads;
      int group = 1;
      for (int g = 2; g <= 4; g++) {
        group = perKv % g == 0 ? g : group;
      }
      return new Constants(dtype, topK, maxAdapters, headDim, group);
    }
  }

  private record Key(int device, Constants constants) {}

  private record Target(int capability, Constants constants) {}

  private static final Map<Key, Kernels> LOADED = new ConcurrentHashMap<>();
  private static final Map<Target, CompletableFuture<byte[]>> AHEAD = new ConcurrentHashMap<>();

  private final Cuda cuda;
  private final Constants constants;
  private final Module module;
  private final Map<KernelName, Kernel> kernels = new EnumMap<>(KernelName.class);

  private Kernels(Cuda cuda, Constants constants) {
    this.cuda = cuda;
    this.constants = constants;
    this.module = Module.load(cuda, code(cuda.capability(), constants));
  }

  private static byte[] compile(int capability, Constants constants) {
    return Nvrtc.get().compile(source(), options(constants), capability, CacheFolders.kernels());
  }

  /** The compiler's options for these constants. */
  public static List<String> options(Constants constants) {
    return List.of(
        "-DDTYPE=" + (constants.dtype() == Dtype.F32 ? 0 : constants.dtype() == Dtype.F16 ? 1 : 2),
        "-DSCORES=" + constants.scores().ordinal(),
        "-DTOPK=" + constants.topK(),
        "-DMAXN=" + constants.maxAdapters(),
        "-DHEAD_DIM=" + constants.headDim(),
        "-DGROUP=" + constants.group(),
        "-DMASKED=" + (constants.masked() ? 1 : 0),
        "-DMAX_ROWS=" + MatrixVector.MAX_ROWS,
        "-DMAX_SEQUENCES=" + DeviceSampler.MAX_ROWS,
        "-DMAX_RANK=" + AdapterMemory.MAX_RANK,
        "-DMAX_BANNED=" + DeviceSampler.MAX_BANNED,
        "-DKV_BLOCK=" + KvBlock.TOKENS);
  }

  /**
   * Works ahead, at several things at once: a module takes seconds to compile, all records' layouts
   * some 50 ms of a young JVM.
   */
  private static final class Ahead {
    static final ExecutorService WORKER =
        Executors.newFixedThreadPool(
            Math.clamp(Runtime.getRuntime().availableProcessors() / 2, 1, 8),
            Thread.ofPlatform().daemon().name("compiling kernels").factory());

    private Ahead() {}
  }

  /**
   * Begins to compile what {@link #of} will be asked for when a model like this is run, where it
   * has not been compiled before on this machine, and to look at the records that kernels take,
   * while the caller loads the model.
   *
   * @param adapters behind gates; 0 for a model without gates
   */
  public static void prepare(
      Cuda cuda, Dtype dtype, int topK, int adapters, int heads, int kvHeads, int headDim) {
    int k = adapters == 0 ? 1 : Math.min(topK, adapters);
    Ahead.WORKER.execute(
        () -> Arrays.stream(KernelName.values()).map(KernelName::argument).forEach(CStruct::of));
    try {
      prepare(cuda.capability(), Constants.ofLayers(dtype, 1, 1));
      if (adapters > 0) {
        prepare(cuda.capability(), Constants.ofLayers(dtype, k, adapters));
      }
      prepare(
          cuda.capability(),
          Constants.ofSteps(dtype, k, Math.max(1, adapters), heads, kvHeads, headDim));
    } catch (UserException e) {
      // whoever asks for the kernels gets the error
    }
  }

  static void prepare(int capability, Constants constants) {
    AHEAD.computeIfAbsent(
        new Target(capability, constants),
        target ->
            CompletableFuture.supplyAsync(() -> compile(capability, constants), Ahead.WORKER));
  }

  /** The machine code, compiled ahead or now. */
  static byte[] code(int capability, Constants constants) {
    var ahead = AHEAD.remove(new Target(capability, constants));
    if (ahead != null) {
      try {
        return ahead.join();
      } catch (CompletionException e) {
        // once more, so that the error has a caller
      }
    }
    return compile(capability, constants);
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

  /** What {@code meteora.cu} includes. */
  public static final List<String> HEADERS =
      Pattern.compile("#include \"(.*)\"")
          .matcher(text("meteora.cu"))
          .results()
          .map(found -> found.group(1))
          .toList();

  static Nvrtc.Source source() {
    var headers = new HashMap<String, String>();
    HEADERS.forEach(name -> headers.put(name, text(name)));
    return new Nvrtc.Source(text("meteora.cu"), headers);
  }

  private static String text(String name) {
    return Texts.resource(Kernels.class, name);
  }

  public Cuda cuda() {
    return cuda;
  }

  public Constants constants() {
    return constants;
  }

  public synchronized Kernel get(KernelName name) {
    return kernels.computeIfAbsent(name, it -> module.kernel(it.inSource()));
  }

  /** Queues a launch that is not kept. */
  public void run(KernelName name, Shape shape, Record argument, Stream stream) {
    launch(name, shape, argument).on(stream);
  }

  /**
   * A launch made ready.
   *
   * @param argument of the type that the kernel takes
   */
  public Kernel.Launch launch(KernelName name, Shape shape, Record argument) {
    if (argument.getClass() != name.argument()) {
      throw new IllegalArgumentException(name + " does not take " + argument.getClass());
    }
    return get(name).launch(shape, argument);
  }
}
