package org.meteora.tensor;

import static java.lang.foreign.ValueLayout.JAVA_INT;

import ai.djl.engine.Engine;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.SymbolLookup;
import java.nio.charset.StandardCharsets;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.Optional;
import java.util.regex.Pattern;
import org.meteora.UserException;
import org.meteora.foreign.Functions;
import org.meteora.io.CacheFolders;
import org.meteora.io.Digests;
import org.meteora.io.Folders;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The libtorch that this process runs on, found and loaded once.
 *
 * <p>Where there is an NVIDIA GPU, a CUDA build of PyTorch 2.7 or newer is looked for: at {@code
 * METEORA_TORCH} or {@code PYTORCH_LIBRARY_PATH}, in {@code VIRTUAL_ENV}, in {@code CONDA_PREFIX},
 * in the {@code python3} on the path, in the user's own site-packages. Otherwise, and where only
 * the CPU is asked for, it is the CPU build that comes with this software, if it is there. {@code
 * METEORA_TORCH=download} lets DJL fetch its own CUDA build; a path there or in {@code
 * PYTORCH_LIBRARY_PATH} is taken whatever the device.
 */
public final class LibTorch {
  private static final Logger LOG = LoggerFactory.getLogger(LibTorch.class);

  /** The version that DJL's JNI library was compiled for: its label there, not a condition. */
  static final String JNI_VERSION = "2.7.1";

  static final String JNI_CUDA = "cu128";
  private static final List<String> LIBRARIES =
      List.of("libc10.so", "libtorch_cpu.so", "libc10_cuda.so", "libtorch_cuda.so", "libtorch.so");
  private static final Pattern VERSION = Pattern.compile("(\\d+)\\.(\\d+).*");

  private static final String INSTALL_OR_NAME =
      "install one (python3 -m pip install torch), or name one with METEORA_TORCH=FOLDER";

  /** A process has one libtorch. */
  private static Build loaded;

  private LibTorch() {}

  /**
   * A libtorch.
   *
   * @param folder where its libraries are; empty: the CPU build that DJL takes from the class path
   * @param version such as 2.11.0+cu130, or "unknown"
   * @param cuda the CUDA version it was built for, empty for a CPU build
   * @param foundBy what pointed at it
   */
  public record Build(Optional<Path> folder, String version, String cuda, String foundBy) {
    boolean hasCuda() {
      return !cuda.isEmpty();
    }

    /** Where NVIDIA's libraries may lie beside it, NVRTC, NCCL and cuBLAS among them. */
    public List<Path> cudaFolders() {
      if (folder.isEmpty()) {
        return List.of();
      }
      var result = new ArrayList<Path>(List.of(folder.get()));
      // a wheel: site-packages/torch/lib beside site-packages/nvidia/*/lib
      var site = folder.get().getParent().getParent();
      if (site != null) {
        Folders.readable(site.resolve("nvidia")).forEach(lib -> result.add(lib.resolve("lib")));
      }
      return result.stream().filter(Files::isDirectory).toList();
    }

    @Override
    public String toString() {
      return "PyTorch " + version + folder.map(f -> " at " + f).orElse("") + " (" + foundBy + ")";
    }
  }

  /**
   * The NVIDIA driver's answer: how many GPUs, and up to which CUDA version it runs; none without
   * one.
   */
  public record Driver(int gpus, int cudaVersion) {
    static final Driver NONE = new Driver(0, 0);

    /** Such as 13.0. */
    public String cuda() {
      return cudaVersion / 1000 + "." + cudaVersion % 1000 / 10;
    }
  }

  /** The libtorch of this process, for whatever device there is; loaded now if none is. */
  public static Build load() {
    return load(true);
  }

  /**
   * The libtorch of this process; loaded now if none is.
   *
   * @param gpu whether a GPU may be used; has no effect once it is loaded
   * @throws UserException if there is none, or what was named is none
   */
  public static synchronized Build load(boolean gpu) {
    if (loaded == null) {
      loaded = loadOnce(gpu);
    }
    return loaded;
  }

  private static Build loadOnce(boolean gpu) {
    var build = choose(gpu);
    build.folder().ifPresent(folder -> pointDjlTo(build, folder));
    boolean installed = DjlNatives.install();
    if (!installed && build.folder().isPresent()) {
      throw new IllegalStateException("DJL was used before " + build + " was chosen");
    }
    Engine.getEngine("PyTorch");
    if (build.hasCuda() && gpu) {
      LOG.info("{}, CUDA {}, {} GPU(s)", build, build.cuda(), driver().gpus());
    } else {
      LOG.debug("{}", build);
    }
    return build;
  }

  /** What {@link #load(boolean)} would choose. */
  static Build choose(boolean gpu) {
    var problems = new ArrayList<String>();
    var explicit = TorchSearch.explicit();
    if (explicit.isPresent()) {
      var why = unusable(explicit.get());
      if (why.isPresent()) {
        throw new UserException(
            explicit.get() + " cannot be used: " + why.get() + "; " + INSTALL_OR_NAME);
      }
      return explicit.get();
    }
    var driver = gpu ? driver() : Driver.NONE;
    if (driver.gpus() > 0) {
      for (var place : TorchSearch.places()) {
        for (var build : place.get()) {
          var problem = problem(build, driver);
          if (problem.isEmpty()) {
            return build;
          }
          problems.add(build + ": " + problem.get());
        }
      }
    }
    var bundled = new Build(Optional.empty(), JNI_VERSION, "", "comes with meteora");
    boolean hasBundled = LibTorch.class.getResource("/native/lib/pytorch.properties") != null;
    if (driver.gpus() > 0 && hasBundled) {
      LOG.warn(
          "there is a GPU, but no CUDA build of PyTorch 2.7 or newer{}: running on the CPU; "
              + INSTALL_OR_NAME,
          problems.isEmpty() ? "" : " that runs here (" + String.join("; ", problems) + ")");
    }
    if (hasBundled) {
      return bundled;
    }
    // a distribution without the CPU build: any PyTorch will do
    return TorchSearch.places().stream()
        .flatMap(place -> place.get().stream())
        .filter(build -> unusable(build).isEmpty())
        .findFirst()
        .orElseThrow(
            () ->
                new UserException("there is no PyTorch of 2.7 or newer here: " + INSTALL_OR_NAME));
  }

  static Optional<String> problem(Build build, Driver driver) {
    if (!build.hasCuda()) {
      return Optional.of("built without CUDA");
    }
    var why = unusable(build);
    if (why.isPresent()) {
      return why;
    }
    var cuda = VERSION.matcher(build.cuda());
    if (cuda.matches() && Integer.parseInt(cuda.group(1)) > driver.cudaVersion() / 1000) {
      return Optional.of(
          "needs CUDA " + build.cuda() + ", the driver runs " + driver.cuda() + " at most");
    }
    return Optional.empty();
  }

  private static Optional<String> unusable(Build build) {
    var version = VERSION.matcher(build.version());
    if (version.matches()
        && Integer.parseInt(version.group(1)) * 1000 + Integer.parseInt(version.group(2)) < 2007) {
      return Optional.of("older than 2.7");
    }
    return build.folder().stream()
        .flatMap(folder -> LIBRARIES.stream().map(folder::resolve))
        .filter(library -> Files.exists(library) && !SharedObject.whole(library))
        .findFirst()
        .map(
            library ->
                library.getFileName()
                    + " is cut off, as by an installation that ended early, or cannot be read");
  }

  /**
   * Hands DJL a folder of links to the libraries that it needs, and to no others: it loads all that
   * it finds, and a wheel's folder holds some that only Python can load. Nobody else may write
   * there.
   */
  private static void pointDjlTo(Build build, Path folder) {
    Path links;
    try {
      var real = folder.toRealPath();
      var digest = Digests.sha256().digest(real.toString().getBytes(StandardCharsets.UTF_8));
      links =
          Files.createDirectories(
              CacheFolders.kernels().resolve("torch-" + HexFormat.of().formatHex(digest, 0, 8)));
      for (var library : LIBRARIES) {
        if (Files.exists(real.resolve(library))) {
          try {
            Files.createSymbolicLink(links.resolve(library), real.resolve(library));
          } catch (FileAlreadyExistsException e) {
            // an earlier run, or another process just now
          }
        }
      }
    } catch (IOException e) {
      throw new UserException("cannot make links to " + folder + ": " + e.getMessage(), e);
    }
    System.setProperty("PYTORCH_LIBRARY_PATH", links.toString());
    System.setProperty("PYTORCH_VERSION", JNI_VERSION);
    System.setProperty("PYTORCH_FLAVOR", build.hasCuda() ? JNI_CUDA : "cpu");
  }

  /** Asks the NVIDIA driver; nothing of CUDA is set up by it. */
  public static Driver driver() {
    try (var arena = Arena.ofConfined()) {
      var library = SymbolLookup.libraryLookup("libcuda.so.1", Arena.global());
      var number = arena.allocate(JAVA_INT);
      if ((int) Functions.call(Functions.bind(library, "cuInit", "(I)I"), 0) != 0) {
        return Driver.NONE;
      }
      var count = Functions.bind(library, "cuDeviceGetCount", "(A)I");
      boolean counted = (int) Functions.call(count, number) == 0;
      int gpus = number.get(JAVA_INT, 0);
      var version = Functions.bind(library, "cuDriverGetVersion", "(A)I");
      boolean known = counted && (int) Functions.call(version, number) == 0;
      return known ? new Driver(gpus, number.get(JAVA_INT, 0)) : Driver.NONE;
    } catch (IllegalArgumentException | java.util.NoSuchElementException e) {
      return Driver.NONE; // no driver
    }
  }
}
