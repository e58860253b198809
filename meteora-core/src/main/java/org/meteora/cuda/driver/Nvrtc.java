package org.meteora.cuda.driver;

import static java.lang.foreign.ValueLayout.JAVA_BYTE;
import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.SymbolLookup;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.Collections;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.TreeMap;
import java.util.concurrent.atomic.AtomicBoolean;
import org.meteora.UserException;
import org.meteora.foreign.Functions;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Digests;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Compiles CUDA C++ for the GPU at hand and keeps the result on disk: in {@code
 * $XDG_CACHE_HOME/meteora} or {@code ~/.cache/meteora}, under a hash of source, options,
 * architecture and compiler version. An entry that is damaged is made again; a folder that cannot
 * be written costs a compilation each start.
 *
 * <p>The compiler is {@code libnvrtc.so} (13, 12 or 11), as {@link CudaLibraries} finds it.
 */
public final class Nvrtc {
  private static final Logger LOG = LoggerFactory.getLogger(Nvrtc.class);

  /** One line a process: a model needs several modules of kernels. */
  private static final AtomicBoolean LOGGED = new AtomicBoolean();

  private static final List<String> NAMES =
      List.of("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so");

  /** The code for an option that the compiler does not know. */
  private static final int INVALID_OPTION = 5;

  /** A process has one. */
  private static Nvrtc compiler;

  private final Compilations compilations = new Compilations(3000);

  private final SymbolLookup library;
  private final String version;

  private Nvrtc() {
    this.library =
        CudaLibraries.find(NAMES, "libnvrtc(-[0-9a-f]+)?\\.so.*")
            .orElseThrow(
                () ->
                    new UserException(
                        "no CUDA compiler: libnvrtc.so.13 or .12 is neither on LD_LIBRARY_PATH nor"
                            + " in "
                            + CudaLibraries.places()));
    Runtime.getRuntime().addShutdownHook(new Thread(compilations::finish));
    try (var arena = Arena.ofConfined()) {
      var both = arena.allocate(8, 8);
      call("nvrtcVersion", "PP", both.address(), both.address() + 4);
      this.version = both.get(JAVA_INT, 0) + "." + both.get(JAVA_INT, 4);
    }
  }

  /**
   * The compiler.
   *
   * @throws UserException when there is none
   */
  public static synchronized Nvrtc get() {
    if (compiler == null) {
      compiler = new Nvrtc();
    }
    return compiler;
  }

  /** The compiler's version, such as 13.0. */
  public String version() {
    return version;
  }

  /**
   * CUDA C++.
   *
   * @param headers by the names that {@code text} and they include them by
   */
  public record Source(String text, Map<String, String> headers) {
    public Source {
      headers = Collections.unmodifiableMap(new TreeMap<>(headers));
    }
  }

  /**
   * Machine code of {@code source} for {@code capability} (90 for 9.0); PTX, for the driver to
   * finish, when the compiler does not know that GPU yet.
   *
   * @param options such as {@code -DNAME=1}
   * @throws UserException with the compiler's message when it refuses
   */
  public byte[] compile(Source source, List<String> options, int capability, Path cache) {
    var target = architecture(capability);
    var all = new ArrayList<>(options);
    all.add("--gpu-architecture=" + target);
    all.add("--std=c++17");
    var hashed =
        String.join(
            "\0", source.text(), source.headers().toString(), String.join("\0", all), version);
    var digest = Digests.sha256().digest(hashed.getBytes(StandardCharsets.UTF_8));
    var key = HexFormat.of().formatHex(digest, 0, 16);
    var file = cache.resolve(key + (target.startsWith("sm_") ? ".cubin" : ".ptx"));
    var kept = read(file);
    if (kept.isPresent()) {
      return kept.get();
    }
    if (LOGGED.compareAndSet(false, true)) {
      LOG.info("compiling CUDA kernels for {}; later runs find them in {}", target, cache);
    }
    var code = compile(source, all, target.startsWith("sm_"));
    try {
      AtomicFiles.writeStream(
          file,
          out -> {
            out.write(Digests.sha256().digest(code));
            out.write(code);
          });
    } catch (UserException e) {
      LOG.warn("compiled kernels are not kept: {}", e.getMessage());
    }
    return code;
  }

  /** A kept entry: 32 bytes of SHA-256, then the code. Anything else counts as absent. */
  private static Optional<byte[]> read(Path file) {
    try {
      if (!Files.isRegularFile(file)) {
        return Optional.empty();
      }
      var bytes = Files.readAllBytes(file);
      if (bytes.length > 32) {
        var code = Arrays.copyOfRange(bytes, 32, bytes.length);
        if (Arrays.equals(Digests.sha256().digest(code), Arrays.copyOf(bytes, 32))) {
          return Optional.of(code);
        }
      }
      LOG.warn("{} is damaged and is made again", file);
    } catch (IOException e) {
      LOG.warn("{} cannot be read and is made again", file);
    }
    return Optional.empty();
  }

  private String architecture(int capability) {
    try (var arena = Arena.ofConfined()) {
      var count = arena.allocate(8, 8);
      call("nvrtcGetNumSupportedArchs", "P", count.address());
      var n = count.get(JAVA_INT, 0);
      var list = arena.allocate(4L * n, 8);
      call("nvrtcGetSupportedArchs", "P", list.address());
      var best = 0;
      for (var i = 0; i < n; i++) {
        var arch = list.get(JAVA_INT, 4L * i);
        if (arch == capability) {
          // with what this GPU alone has
          return "sm_" + capability + (capability == 90 ? "a" : "");
        }
        best = arch < capability ? Math.max(best, arch) : best;
      }
      if (best == 0) {
        throw new UserException(
            "CUDA compiler %s does not know GPUs of compute capability %s.%s",
            version, capability / 10, capability % 10);
      }
      return "compute_" + best;
    }
  }

  private byte[] compile(Source source, List<String> options, boolean machineCode) {
    compilations.begin();
    try (var arena = Arena.ofConfined()) {
      var out = arena.allocate(8, 8);
      call(
          "nvrtcCreateProgram",
          "PPPIPP",
          out.address(),
          arena.allocateFrom(source.text()).address(),
          arena.allocateFrom("meteora.cu").address(),
          source.headers().size(),
          strings(arena, source.headers().values()),
          strings(arena, source.headers().keySet()));
      var program = out.get(JAVA_LONG, 0);
      try {
        var threaded = new ArrayList<>(options);
        threaded.add("--split-compile=0"); // by all processors
        var code = compile(arena, program, threaded);
        if (code == INVALID_OPTION) {
          code = compile(arena, program, options);
        }
        if (code != 0) {
          call("nvrtcGetProgramLogSize", "PP", program, out.address());
          var log = arena.allocate(out.get(JAVA_LONG, 0), 1);
          call("nvrtcGetProgramLog", "PP", program, log.address());
          throw new UserException(
              "CUDA compiler %s refuses the kernels: %s",
              version, log.getString(0).strip().replace("\n", "; "));
        }
        var kind = machineCode ? "CUBIN" : "PTX";
        call("nvrtcGet" + kind + "Size", "PP", program, out.address());
        var result = arena.allocate(out.get(JAVA_LONG, 0), 16);
        call("nvrtcGet" + kind, "PP", program, result.address());
        return result.toArray(JAVA_BYTE);
      } finally {
        out.set(JAVA_LONG, 0, program);
        call("nvrtcDestroyProgram", "P", out.address());
      }
    } finally {
      compilations.end();
    }
  }

  private int compile(Arena arena, long program, List<String> options) {
    return invoke("nvrtcCompileProgram", "PIP", program, options.size(), strings(arena, options));
  }

  /** The address of an array of C strings. */
  private static long strings(Arena arena, Collection<String> texts) {
    var array = arena.allocate(8L * texts.size() + 8, 8);
    var i = 0;
    for (var text : texts) {
      array.setAtIndex(JAVA_LONG, i++, arena.allocateFrom(text).address());
    }
    return array.address();
  }

  private int invoke(String name, String signature, Object... arguments) {
    var symbol =
        library
            .find(name)
            .orElseThrow(
                () -> new UserException("libnvrtc has no " + name + ": 11.2 or newer is needed"));
    return (int)
        Functions.call(Functions.bind(symbol, "(" + signature.replace('P', 'J') + ")I"), arguments);
  }

  private void call(String name, String signature, Object... arguments) {
    var code = invoke(name, signature, arguments);
    if (code != 0) {
      throw new UserException("CUDA compiler: " + name + " failed with " + code);
    }
  }
}
