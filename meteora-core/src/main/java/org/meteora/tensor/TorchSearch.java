package org.meteora.tensor;

import ai.djl.pytorch.jni.LibUtils;
import ai.djl.util.Platform;
import java.io.File;
import java.io.IOException;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.MethodType;
import java.nio.charset.StandardCharsets;
import java.nio.file.DirectoryNotEmptyException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.TimeUnit;
import java.util.function.Supplier;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.meteora.UserException;
import org.meteora.io.CacheFolders;
import org.meteora.io.Folders;
import org.meteora.tensor.LibTorch.Build;

/**
 * Finds builds of libtorch on this machine: one that a variable names, those of Python environments
 * and those of the user's site-packages.
 */
final class TorchSearch {
  private static final Pattern SAID =
      Pattern.compile("(?m)^(__version__|cuda)\\b[^=]*=\\s*['\"]([^'\"]*)['\"]");

  /** What DJL's own build is for. */
  private static final String DOWNLOADED_CUDA = "12.8";

  private TorchSearch() {}

  static Optional<Build> explicit() {
    for (var variable : List.of("METEORA_TORCH", "PYTORCH_LIBRARY_PATH")) {
      var value = System.getenv(variable);
      if (value == null || value.isBlank()) {
        continue;
      }
      if (variable.equals("METEORA_TORCH") && value.equals("download")) {
        return Optional.of(
            new Build(
                Optional.of(downloaded()),
                LibTorch.JNI_VERSION,
                DOWNLOADED_CUDA,
                "fetched by DJL, as " + variable + "=download asks"));
      }
      var root = Path.of(value).toAbsolutePath().normalize();
      return Optional.of(
          Stream.of(root, root.resolve("lib"), root.resolve("torch/lib"))
              .map(folder -> at(folder, variable))
              .flatMap(Optional::stream)
              .findFirst()
              .or(() -> inPrefix(root, variable).stream().findFirst())
              .orElseThrow(
                  () ->
                      new UserException(
                          "%s=%s: no libtorch_cpu.so and libtorch.so there; name a folder such as"
                              + " …/site-packages/torch, or the root of a virtual environment",
                          variable, value)));
    }
    return Optional.empty();
  }

  /**
   * The folder of DJL's own CUDA build, which it fetches when it is not there. DJL itself would
   * take the CPU build of the class path, which has the same version.
   */
  private static Path downloaded() {
    System.setProperty("PYTORCH_FLAVOR", LibTorch.JNI_CUDA);
    System.setProperty("PYTORCH_VERSION", LibTorch.JNI_VERSION);
    var platform = Platform.detectPlatform("pytorch", LibTorch.JNI_VERSION);
    var folder =
        CacheFolders.engine()
            .resolve("pytorch")
            .resolve(
                LibTorch.JNI_VERSION + "-" + LibTorch.JNI_CUDA + "-" + platform.getClassifier());
    if (Files.exists(folder.resolve("libtorch.so"))) {
      return folder;
    }
    try {
      // DJL moves what it fetched to this place, and does so in silence when something is there
      makeWay(folder);
      var result = Class.forName(LibUtils.class.getName() + "$LibTorch");
      MethodHandles.privateLookupIn(LibUtils.class, MethodHandles.lookup())
          .findStatic(
              LibUtils.class, "downloadPyTorch", MethodType.methodType(result, Platform.class))
          .invoke(platform);
      if (!Files.exists(folder.resolve("libtorch.so"))) {
        throw new IOException(folder + " is in the way, or what was fetched has no libtorch.so");
      }
      return folder;
    } catch (Throwable e) {
      var root = e;
      while (root.getCause() != null) {
        root = root.getCause();
      }
      throw new UserException(
          "METEORA_TORCH=download: PyTorch %s for CUDA %s cannot be fetched (%s: %s);"
              + " install one (python3 -m pip install torch), or name one with"
              + " METEORA_TORCH=FOLDER",
          LibTorch.JNI_VERSION,
          DOWNLOADED_CUDA,
          root.getClass().getSimpleName(),
          root.getMessage(),
          e);
    }
  }

  /**
   * Runs with another build have left DJL's library for Java there, which is unpacked anew. Another
   * process may do the same at this moment.
   */
  static void makeWay(Path folder) throws IOException {
    if (Files.isDirectory(folder)) {
      for (var file : Folders.readable(folder)) {
        if (file.getFileName().toString().endsWith("libdjl_torch.so")) {
          Files.deleteIfExists(file);
        }
      }
      try {
        Files.deleteIfExists(folder);
      } catch (DirectoryNotEmptyException e) {
        // something else lies there, or another process has fetched a build meanwhile
      }
    }
  }

  /** Where to look, in order, each only when those before have nothing. */
  static List<Supplier<List<Build>>> places() {
    return List.of(
        () -> inVariable("VIRTUAL_ENV"),
        () -> inVariable("CONDA_PREFIX"),
        TorchSearch::inPython,
        () ->
            CacheFolders.home()
                .map(home -> inPrefix(home.resolve(".local"), "user site-packages"))
                .orElse(List.of()));
  }

  private static List<Build> inVariable(String variable) {
    var value = System.getenv(variable);
    return value == null || value.isBlank() ? List.of() : inPrefix(Path.of(value), variable);
  }

  /** Those of an environment, or of an installation of Python. */
  static List<Build> inPrefix(Path prefix, String foundBy) {
    var folders = new ArrayList<Path>();
    for (var lib : List.of("lib", "lib64")) {
      for (var python : Folders.readable(prefix.resolve(lib))) {
        if (python.getFileName().toString().startsWith("python3")) {
          folders.add(python.resolve("site-packages/torch/lib"));
        }
      }
    }
    folders.add(prefix.resolve("lib"));
    return folders.stream().map(folder -> at(folder, foundBy)).flatMap(Optional::stream).toList();
  }

  /** That which {@code import torch} would find; asked without importing it. */
  private static List<Build> inPython() {
    try {
      var process =
          new ProcessBuilder(
                  "python3",
                  "-c",
                  // without the working folder, from which no code is to be loaded
                  "import sys; sys.path = [p for p in sys.path if p];"
                      + " import importlib.util as u; s = u.find_spec('torch');"
                      + " print(s.origin if s else '')")
              .directory(new File("/"))
              .redirectError(ProcessBuilder.Redirect.DISCARD)
              .start();
      process.getOutputStream().close();
      if (!process.waitFor(20, TimeUnit.SECONDS)) {
        process.destroyForcibly();
        return List.of();
      }
      var origin =
          new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8).strip();
      return origin.isEmpty()
          ? List.of()
          : at(Path.of(origin).resolveSibling("lib"), "python3").stream().toList();
    } catch (IOException e) {
      return List.of(); // no python3
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      return List.of();
    }
  }

  private static Optional<Build> at(Path folder, String foundBy) {
    if (!Files.exists(folder.resolve("libtorch_cpu.so"))
        || !Files.exists(folder.resolve("libtorch.so"))) {
      return Optional.empty();
    }
    boolean cuda =
        Files.exists(folder.resolve("libtorch_cuda.so"))
            && Files.exists(folder.resolve("libc10_cuda.so"));
    var version = "unknown";
    var builtFor = cuda ? "unknown" : "";
    for (var file :
        List.of(folder.resolveSibling("version.py"), folder.resolveSibling("build-version"))) {
      try {
        var text = Files.readString(file);
        var matcher = SAID.matcher(text);
        if (file.endsWith("build-version")) {
          version = text.strip();
        }
        while (matcher.find()) {
          if (matcher.group(1).equals("cuda")) {
            builtFor = cuda ? matcher.group(2) : "";
          } else {
            version = matcher.group(2);
          }
        }
        break;
      } catch (IOException e) {
        // not a wheel, or not an archive
      }
    }
    return Optional.of(new Build(Optional.of(folder), version, builtFor, foundBy));
  }
}
