package org.meteora.tensor;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.Callable;
import java.util.concurrent.Executors;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Where a PyTorch is looked for, with folders that hold only its files' names. */
class LibTorchTest {
  @TempDir Path home;

  /** A library of nothing but its header, which says that a table of 64 bytes follows. */
  private static void library(Path file) throws IOException {
    var elf = ByteBuffer.allocate(128).order(ByteOrder.LITTLE_ENDIAN);
    elf.putInt(0, 0x464c457f)
        .putLong(0x28, 64)
        .putShort(0x3a, (short) 64)
        .putShort(0x3c, (short) 1);
    Files.write(file, elf.array());
  }

  /** DJL's library for Java, left by runs with another build, does not keep DJL from its own. */
  @Test
  void whatIsFetchedFindsItsPlaceFree() throws IOException {
    var folder = Files.createDirectory(home.resolve("2.7.1-cu128-linux-x86_64"));
    TorchSearch.makeWay(home.resolve("none"));
    Files.writeString(folder.resolve("0.36.0-libdjl_torch.so"), "");
    TorchSearch.makeWay(folder);
    assertThat(folder).doesNotExist();
    Files.createDirectory(folder);
    Files.writeString(folder.resolve("somebody's"), "");
    TorchSearch.makeWay(folder);
    assertThat(folder).isNotEmptyDirectory();
  }

  /** Several processes that begin at the same time take away what one has taken away already. */
  @Test
  void severalMakeWayAtOnce() throws Exception {
    try (var threads = Executors.newFixedThreadPool(4)) {
      for (int round = 0; round < 200; round++) {
        var folder = Files.createDirectory(home.resolve("build-" + round));
        Files.writeString(folder.resolve("0.36.0-libdjl_torch.so"), "");
        Callable<Void> one =
            () -> {
              TorchSearch.makeWay(folder);
              return null;
            };
        for (var each : threads.invokeAll(Collections.nCopies(4, one))) {
          each.get();
        }
        assertThat(folder).doesNotExist();
      }
    }
  }

  private Path wheel(String prefix, String version, String cuda) throws IOException {
    var torch = home.resolve(prefix).resolve("lib/python3.12/site-packages/torch");
    Files.createDirectories(torch.resolve("lib"));
    for (var name : List.of("libc10.so", "libtorch_cpu.so", "libtorch.so")) {
      library(torch.resolve("lib").resolve(name));
    }
    if (cuda != null) {
      library(torch.resolve("lib/libtorch_cuda.so"));
      library(torch.resolve("lib/libc10_cuda.so"));
    }
    Files.writeString(
        torch.resolve("version.py"),
        "__version__ = '%s'\ndebug = False\ncuda: Optional[str] = %s\nhip: Optional[str] = None\n"
            .formatted(version, cuda == null ? "None" : "'" + cuda + "'"));
    return torch;
  }

  @Test
  void readsAWheel() throws IOException {
    var torch = wheel("venv", "2.11.0+cu130", "13.0");
    Files.createDirectories(torch.resolve("../nvidia/nccl/lib"));
    var found = TorchSearch.inPrefix(home.resolve("venv"), "VIRTUAL_ENV");
    assertThat(found)
        .containsExactly(
            new LibTorch.Build(
                Optional.of(torch.resolve("lib")), "2.11.0+cu130", "13.0", "VIRTUAL_ENV"));
    assertThat(found.getFirst().cudaFolders())
        .containsExactly(
            torch.resolve("lib"), torch.getParent().resolve("nvidia").resolve("nccl/lib"));
    assertThat(found.getFirst())
        .hasToString("PyTorch 2.11.0+cu130 at " + torch.resolve("lib") + " (VIRTUAL_ENV)");
  }

  @Test
  void saysWhyOneDoesNotServe() throws IOException {
    wheel("cpu", "2.11.0+cpu", null);
    wheel("old", "2.6.0+cu124", "12.4");
    wheel("new", "2.15.0+cu132", "13.2");
    wheel("right", "2.7.1+cu128", "12.8");
    var driver = new LibTorch.Driver(1, 12040);
    assertThat(problem("cpu", driver)).contains("built without CUDA");
    assertThat(problem("old", driver)).contains("older than 2.7");
    assertThat(problem("new", driver)).contains("needs CUDA 13.2, the driver runs 12.4 at most");
    assertThat(problem("right", driver)).isEmpty();
  }

  @Test
  void oneThatIsCutOffIsNotLoaded() throws IOException {
    var torch = wheel("cut", "2.7.1+cu128", "12.8");
    var driver = new LibTorch.Driver(1, 12080);
    for (var library : List.of("libtorch_cpu.so", "libc10_cuda.so")) {
      var file = torch.resolve("lib").resolve(library);
      var bytes = Files.readAllBytes(file);
      for (int length : new int[] {0, 63, 64, 127}) {
        Files.write(file, Arrays.copyOf(bytes, length));
        assertThat(problem("cut", driver)).get().asString().startsWith(library + " is cut off");
      }
      Files.write(file, bytes);
      assertThat(problem("cut", driver)).isEmpty();
    }
  }

  private Optional<String> problem(String prefix, LibTorch.Driver driver) {
    return LibTorch.problem(TorchSearch.inPrefix(home.resolve(prefix), "").getFirst(), driver);
  }

  /** conda-forge's: libraries, CUDA's among them, lie in the environment's own folder. */
  @Test
  void readsAnEnvironmentOfConda() throws IOException {
    var lib = Files.createDirectories(home.resolve("conda/lib"));
    for (var name :
        List.of(
            "libtorch.so",
            "libtorch_cpu.so",
            "libtorch_cuda.so",
            "libc10_cuda.so",
            "libnvrtc.so.12")) {
      library(lib.resolve(name));
    }
    var found = TorchSearch.inPrefix(home.resolve("conda"), "CONDA_PREFIX");
    assertThat(found).singleElement().extracting(each -> each.folder().get()).isEqualTo(lib);
    assertThat(found.getFirst().cudaFolders()).contains(lib);
    assertThat(LibTorch.problem(found.getFirst(), new LibTorch.Driver(1, 12080))).isEmpty();
  }

  @Test
  void thereIsNoneInAnEmptyFolder() {
    assertThat(TorchSearch.inPrefix(home, "VIRTUAL_ENV")).isEmpty();
  }
}
