package org.meteora.cuda.kernel;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.meteora.tensor.Dtype;

/**
 * The kernels' own source without a GPU: compiled as C++, run on threads, on random shapes beside
 * float64, every array of exact size under AddressSanitizer. Copies by tensor maps, their barriers
 * and the tensor cores' products are imitated. Skipped where there is no g++ with AddressSanitizer.
 */
class KernelSourceTest {
  @TempDir Path folder;

  private record Ran(int code, String output) {}

  private Ran run(List<String> command) throws IOException, InterruptedException {
    var output = folder.resolve("output");
    var process =
        new ProcessBuilder(command)
            .directory(folder.toFile())
            .redirectErrorStream(true)
            .redirectOutput(output.toFile())
            .start();
    if (!process.waitFor(5, TimeUnit.MINUTES)) {
      process.destroyForcibly();
      return new Ran(-1, command + " did not end");
    }
    return new Ran(process.exitValue(), Files.readString(output, StandardCharsets.UTF_8));
  }

  private void copy(String name) throws IOException {
    try (var in = Kernels.class.getResourceAsStream(name)) {
      Files.write(folder.resolve(name), in.readAllBytes());
    }
  }

  private Ran compile(String source, List<String> options)
      throws IOException, InterruptedException {
    var command = new ArrayList<>(List.of("g++", "-O1", "-g", "-std=c++20", "-w", "-pthread"));
    command.addAll(List.of("-fsanitize=address,alignment", "-fno-sanitize-recover=all"));
    command.addAll(options);
    command.addAll(List.of(source, "-o", "kernels"));
    try {
      return run(command);
    } catch (IOException e) {
      return new Ran(-1, "no g++");
    }
  }

  @ParameterizedTest
  @CsvSource({
    "decode_layer.cpp, BF16, 2, 32, 64, 2, 12",
    "decode_layer.cpp, F32, 3, 64, 64, 2, 6",
    "attention.cpp, BF16, 1, 32, 128, 4, 4",
    "attention.cpp, F16, 1, 32, 64, 3, 4",
    "prefill.cpp, BF16, 2, 32, 0, 0, 2",
    "prefill.cpp, F32, 3, 64, 0, 0, 2",
    "product.cpp, BF16, 2, 32, 0, 0, 5",
    "product.cpp, F16, 2, 32, 0, 0, 3"
  })
  void agreesWithFloat64AndStaysInside(
      String source, Dtype dtype, int topK, int adapters, int headDim, int group, String rounds)
      throws Exception {
    Files.writeString(folder.resolve("empty.cpp"), "int main() { return 0; }");
    var works = compile("empty.cpp", List.of()).code == 0 && run(List.of("./kernels")).code == 0;
    Assumptions.assumeTrue(works, "no g++ with AddressSanitizer on this machine");
    for (var name : List.of("meteora.cu", "on_cpu.h", source)) {
      copy(name);
    }
    for (var name : Kernels.HEADERS) {
      copy(name);
    }
    var compiled =
        compile(
            source, Kernels.options(new Kernels.Constants(dtype, topK, adapters, headDim, group)));
    assertThat(compiled.code).as(compiled.output).isZero();
    var ran = run(List.of("./kernels", "1", rounds));
    assertThat(ran.code).as(ran.output).isZero();
    assertThat(ran.output).startsWith("largest error");
  }
}
