package org.meteora.cuda.driver;

import java.io.File;
import java.lang.foreign.SymbolLookup;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.stream.Stream;
import org.meteora.foreign.Functions;
import org.meteora.io.CacheFolders;
import org.meteora.io.Folders;
import org.meteora.tensor.LibTorch;

/**
 * Where CUDA's libraries are found: in the process already or on the library path, beside libtorch,
 * among the CUDA libraries of its Python wheel, in DJL's folder and in {@code /usr/local/cuda}.
 */
final class CudaLibraries {
  private CudaLibraries() {}

  /**
   * @param names in the order of preference
   * @param pattern of file names, of which the last in the alphabet is preferred
   */
  static Optional<SymbolLookup> find(List<String> names, String pattern) {
    var there =
        folders().stream()
            .flatMap(folder -> Folders.readable(folder).reversed().stream())
            .filter(file -> file.getFileName().toString().matches(pattern))
            .map(Path::toString);
    return Functions.library(Stream.concat(names.stream(), there).toArray(String[]::new));
  }

  static String places() {
    return String.join(", ", folders().stream().map(Path::toString).toList());
  }

  private static List<Path> folders() {
    var folders = new ArrayList<Path>(LibTorch.load().cudaFolders());
    for (var variable : List.of("LD_LIBRARY_PATH", "PYTORCH_LIBRARY_PATH")) {
      var value = System.getenv(variable);
      if (value != null) {
        Arrays.stream(value.split(File.pathSeparator))
            .filter(s -> !s.isBlank())
            .map(Path::of)
            .forEach(folders::add);
      }
    }
    for (var folder : List.copyOf(folders)) {
      var wheels = folder.resolve("../../nvidia").normalize();
      Folders.readable(wheels).forEach(part -> folders.add(part.resolve("lib")));
    }
    folders.addAll(Folders.readable(CacheFolders.engine().resolve("pytorch"))); // what DJL fetched
    var home = System.getenv("CUDA_HOME");
    if (home != null) {
      folders.add(Path.of(home, "lib64"));
    }
    folders.add(Path.of("/usr/local/cuda/lib64"));
    return folders.stream().distinct().filter(Files::isDirectory).toList();
  }
}
