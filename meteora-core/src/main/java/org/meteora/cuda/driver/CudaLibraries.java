package org.meteora.cuda.driver;

import java.io.File;
import java.lang.foreign.Arena;
import java.lang.foreign.SymbolLookup;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import org.meteora.io.CacheFolders;
import org.meteora.io.Folders;
import org.meteora.tensor.LibTorch;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Where CUDA's libraries are found: in the process already or on the library path, beside libtorch,
 * among the CUDA libraries of its Python wheel, in DJL's folder and in {@code /usr/local/cuda}.
 */
final class CudaLibraries {
  private static final Logger LOG = LoggerFactory.getLogger(CudaLibraries.class);

  private CudaLibraries() {}

  /**
   * @param names in the order of preference
   * @param pattern of file names, of which the last in the alphabet is preferred
   */
  static Optional<SymbolLookup> find(List<String> names, String pattern) {
    for (var name : names) {
      try {
        return Optional.of(SymbolLookup.libraryLookup(name, Arena.global()));
      } catch (IllegalArgumentException e) {
        // not on the library path
      }
    }
    for (var folder : folders()) {
      for (var file : Folders.readable(folder).reversed()) {
        try {
          if (file.getFileName().toString().matches(pattern)) {
            return Optional.of(SymbolLookup.libraryLookup(file, Arena.global()));
          }
        } catch (IllegalArgumentException e) {
          LOG.debug("{} does not load", file);
        }
      }
    }
    return Optional.empty();
  }

  /** The folders, for a message. */
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
