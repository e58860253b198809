package org.meteora.backend.cuda;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.invoke.MethodHandle;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.EnumSet;
import java.util.List;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import org.meteora.cuda.driver.CStruct;
import org.meteora.cuda.driver.Cublas.Matrix;
import org.meteora.cuda.kernel.KernelName;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.cuda.kernel.TrainingKernels;
import org.meteora.foreign.Functions;
import org.meteora.tensor.Dtype;

/** The kernels' own source, compiled as C++ for float32, on a CPU: training without a GPU. */
final class HostDevice implements TrainingDevice {
  private final MethodHandle kernel;
  private final MethodHandle product;

  /** What {@link #freeBytes} says. */
  long free = 1L << 32;

  /** After so many launches one fails, as when memory runs out; −1: none. */
  int launchesLeft = -1;

  /** What {@link #manyRanks} says. */
  int manyRanks = 1024;

  /** What {@link #manyAdapters} says. */
  int manyAdapters = 128;

  /** What has been launched. */
  final Set<KernelName> launched = EnumSet.noneOf(KernelName.class);

  private HostDevice(Path library) {
    var lookup = SymbolLookup.libraryLookup(library, Arena.global());
    kernel = Functions.bind(lookup, "run_kernel", "(AIIIIA)I");
    product = Functions.bind(lookup, "multiply", "(IIIJIJIIJIII)V");
  }

  /**
   * Compiles them.
   *
   * @return empty where there is no g++
   */
  static Optional<HostDevice> compile(Path folder, int topK) throws Exception {
    var names = new ArrayList<>(List.of("meteora.cu", "on_cpu.h", "training_on_cpu.cpp"));
    names.addAll(Kernels.HEADERS);
    for (var name : names) {
      try (var in = Kernels.class.getResourceAsStream(name)) {
        Files.write(folder.resolve(name), in.readAllBytes());
      }
    }
    var library = folder.resolve("training-" + topK + ".so");
    var command = new ArrayList<>(List.of("g++", "-O1", "-std=c++20", "-w", "-shared", "-fPIC"));
    command.addAll(Kernels.options(Kernels.Constants.ofLayers(Dtype.F32, topK, 32)));
    command.addAll(List.of("training_on_cpu.cpp", "-o", library.toString()));
    try {
      var process =
          new ProcessBuilder(command)
              .directory(folder.toFile())
              .redirectErrorStream(true)
              .redirectOutput(folder.resolve("output").toFile())
              .start();
      if (!process.waitFor(3, TimeUnit.MINUTES) || process.exitValue() != 0) {
        throw new IllegalStateException(Files.readString(folder.resolve("output")));
      }
    } catch (IOException e) {
      return Optional.empty();
    }
    return Optional.of(new HostDevice(library));
  }

  @Override
  public TrainingKernels kernels(int topK, int adapters) {
    return new TrainingKernels(
        (name, shape, argument) -> {
          if (launchesLeft >= 0 && launchesLeft-- == 0) {
            throw new IllegalStateException("CUDA out of memory. Tried to allocate 2 GiB");
          }
          launched.add(name);
          try (var arena = Arena.ofConfined()) {
            var struct = CStruct.of(argument.getClass());
            var memory = arena.allocate(struct.size(), 16);
            struct.write(argument, memory, 0);
            int code =
                (int)
                    kernel.invokeExact(
                        arena.allocateFrom(name.inSource()),
                        shape.x(),
                        shape.y(),
                        shape.z(),
                        shape.threads(),
                        memory);
            if (code != 0) {
              throw new IllegalStateException(name + " is not there");
            }
          } catch (Throwable e) {
            throw Functions.unchecked(e);
          }
        },
        1500); // chunks of few tokens
  }

  @Override
  public void multiply(Matrix c, Matrix a, Matrix b, boolean add) {
    try {
      product.invokeExact(
          c.rows(),
          c.columns(),
          c.innerOf(a, b),
          c.address(),
          c.stride(),
          a.address(),
          a.stride(),
          a.isTransposed() ? 1 : 0,
          b.address(),
          b.stride(),
          b.isTransposed() ? 1 : 0,
          add ? 1 : 0);
    } catch (Throwable e) {
      throw Functions.unchecked(e);
    }
  }

  @Override
  public int manyRanks() {
    return manyRanks;
  }

  @Override
  public int manyAdapters() {
    return manyAdapters;
  }

  @Override
  public void clear(long address, long bytes) {
    MemorySegment.ofAddress(address).reinterpret(bytes).fill((byte) 0);
  }

  @Override
  public void upload(long to, MemorySegment from) {
    MemorySegment.ofAddress(to).reinterpret(from.byteSize()).copyFrom(from);
  }

  @Override
  public void download(MemorySegment to, long from) {
    to.copyFrom(MemorySegment.ofAddress(from).reinterpret(to.byteSize()));
  }

  @Override
  public void makeCurrent() {}

  @Override
  public long freeBytes() {
    return free;
  }
}
