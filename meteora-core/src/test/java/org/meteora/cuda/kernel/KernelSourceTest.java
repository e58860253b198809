package org.meteora.cuda.kernel;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.meteora.UserException;
import org.meteora.cuda.driver.CStruct;
import org.meteora.cuda.driver.Nvrtc;
import org.meteora.nn.Scores;
import org.meteora.tensor.Dtype;

/**
 * The kernels' own source without a GPU: compiled as C++, run thread by thread, on random shapes
 * beside float64, every array of exact size under AddressSanitizer. Copies by tensor maps, their
 * barriers and the tensor cores' products are imitated. Skipped where there is no g++ with
 * AddressSanitizer.
 */
class KernelSourceTest {
  @TempDir static Path folder;
  private static boolean sanitizes;

  private static final Kernels.Constants ALL =
      new Kernels.Constants(Dtype.BF16, Scores.PRODUCT, 1, 32, 128, 4, true);

  private record Ran(int code, String output) {}

  private static Ran run(List<String> command) throws IOException, InterruptedException {
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

  @BeforeAll
  static void askCompiler() throws IOException, InterruptedException {
    Files.writeString(folder.resolve("empty.cpp"), "int main() { return 0; }");
    sanitizes = compile("empty.cpp", List.of()).code == 0 && run(List.of("./kernels")).code == 0;
    copySources();
  }

  private static void copySources() throws IOException {
    for (var name : List.of("meteora.cu", "on_cpu.h")) {
      copy(name);
    }
    for (var name : Kernels.HEADERS) {
      copy(name);
    }
  }

  private static void copy(String name) throws IOException {
    try (var in = Kernels.class.getResourceAsStream(name)) {
      Files.write(folder.resolve(name), in.readAllBytes());
    }
  }

  private static Ran compile(String source, List<String> options)
      throws IOException, InterruptedException {
    var command = new ArrayList<>(List.of("g++", "-O1", "-g1", "-std=c++20", "-w"));
    // compiles only the kernels that main calls
    command.add("-fwhole-program");
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
    "decode_layer.cpp, BF16, PRODUCT, 2, 32, 64, 2, 12",
    "decode_layer.cpp, F32, PRODUCT, 3, 64, 64, 2, 6",
    "decode_layer.cpp, F32, STANDARDIZED, 3, 64, 64, 2, 2",
    "decode_layer.cpp, F16, STANDARDIZED, 3, 64, 64, 2, 2",
    "decode_layer.cpp, F32, NORM, 2, 64, 64, 2, 2",
    "decode_layer.cpp, BF16, GIVEN, 2, 32, 64, 2, 2",
    "decode_layer.cpp, F32, GIVEN, 4, 64, 64, 2, 2",
    "decode_mixture.cpp, BF16, PRODUCT, 1, 32, 64, 2, 3",
    "decode_mixture.cpp, F32, PRODUCT, 1, 32, 64, 2, 2",
    "attention.cpp, BF16, PRODUCT, 1, 32, 128, 4, 4",
    "attention.cpp, F16, PRODUCT, 1, 32, 64, 3, 4",
    "prefill.cpp, BF16, PRODUCT, 2, 32, 0, 0, 2",
    "prefill.cpp, BF16, PRODUCT, 1, 32, 0, 0, 2",
    "prefill.cpp, F16, PRODUCT, 3, 32, 0, 0, 2",
    "prefill.cpp, F32, PRODUCT, 3, 64, 0, 0, 2",
    "prefill.cpp, F32, MAGNITUDE, 2, 32, 0, 0, 1",
    "prefill.cpp, F32, NORM, 3, 64, 0, 0, 2",
    "product.cpp, BF16, PRODUCT, 2, 32, 0, 0, 5",
    "product.cpp, F16, PRODUCT, 2, 32, 0, 0, 3",
    "product.cpp, BF16, STANDARDIZED, 2, 32, 0, 0, 2",
    "product_wide.cpp, BF16, PRODUCT, 1, 32, 64, 2, 3",
    "product_sum.cpp, BF16, PRODUCT, 1, 32, 0, 0, 8",
    "product_sum.cpp, F16, PRODUCT, 1, 32, 0, 0, 8",
    "product_tiled.cpp, BF16, PRODUCT, 1, 32, 0, 0, 8",
    "product_masked.cpp, BF16, PRODUCT, 1, 32, 0, 0, 3",
    "product_masked.cpp, F16, PRODUCT, 1, 32, 0, 0, 2",
    "training.cpp, BF16, PRODUCT, 2, 32, 0, 0, 6",
    "training.cpp, F32, PRODUCT, 3, 64, 0, 0, 6"
  })
  void agreesWithFloat64AndStaysInside(
      String source,
      Dtype dtype,
      Scores scores,
      int topK,
      int adapters,
      int headDim,
      int group,
      String rounds)
      throws Exception {
    Assumptions.assumeTrue(sanitizes, "no g++ with AddressSanitizer on this machine");
    copy(source);
    var compiled =
        compile(
            source,
            Kernels.options(
                new Kernels.Constants(
                    dtype, scores, topK, adapters, headDim, group, source.contains("masked"))));
    assertThat(compiled.code).as(compiled.output).isZero();
    var ran = run(List.of("./kernels", "1", rounds));
    assertThat(ran.code).as(ran.output).isZero();
    assertThat(ran.output).startsWith("largest error");
  }

  /** C++ that compiles only if kernels take their records' structs, laid out as the records say. */
  private static String assertions() {
    var text = new StringBuilder();
    text.append("template <class A, class B> struct SameType { static const bool is = false; };\n");
    text.append("template <class A> struct SameType<A, A> { static const bool is = true; };\n");
    // NVRTC 12 has no word for it
    text.append(
        "#if defined(__CUDACC__) && __CUDACC_VER_MAJOR__ < 13\n#define SKIPS_OFFSETS\n#endif\n");
    var structs = new LinkedHashSet<Class<?>>();
    structs.add(DeviceSampler.SamplingParameters.class);
    structs.add(TrainingKernels.GradientPart.class);
    structs.add(TrainingKernels.PublishedPart.class);
    for (var kernel : KernelName.values()) {
      var struct = kernel.argument().getSimpleName();
      text.append(
          "static_assert(SameType<decltype(%s), void(%s)>::is, \"%s\");\n"
              .formatted(kernel.inSource(), struct, kernel));
      structs.add(kernel.argument());
    }
    for (var left = new ArrayDeque<>(structs); !left.isEmpty(); ) {
      var type = left.pop().asSubclass(Record.class);
      var name = type.getSimpleName();
      var struct = CStruct.of(type);
      text.append(
          "static_assert(sizeof(%s) == %d, \"size of %s\");\n"
              .formatted(name, struct.size(), name));
      for (var field : struct.fields()) {
        text.append(
            "#ifndef SKIPS_OFFSETS\nstatic_assert(__builtin_offsetof(%s, %s) == %d, \"%s.%s\");\n#endif\n"
                .formatted(name, field.name(), field.offset(), name, field.name()));
        if (field.type().isRecord() && structs.add(field.type())) {
          left.add(field.type());
        }
      }
    }
    return text.toString();
  }

  @Test
  void argumentsAreLaidOutAsTheKernelsReadThem() throws Exception {
    Assumptions.assumeTrue(
        compile("empty.cpp", List.of("-fsyntax-only")).code == 0, "no g++ on this machine");
    Files.writeString(
        folder.resolve("arguments.cpp"),
        "#include \"on_cpu.h\"\n" + assertions() + "int main() {}");
    var options = new ArrayList<>(Kernels.options(ALL));
    options.add("-fsyntax-only");
    var compiled = compile("arguments.cpp", options);
    assertThat(compiled.code).as(compiled.output).isZero();
    // and the assertions do hold something
    var wrong = assertions().replace("sizeof(DecodeEmbed) == 72", "sizeof(DecodeEmbed) == 80");
    Files.writeString(
        folder.resolve("arguments.cpp"), "#include \"on_cpu.h\"\n" + wrong + "int main() {}");
    assertThat(compile("arguments.cpp", options).output).contains("size of DecodeEmbed");
  }

  /** The same by the kernels' own compiler, where there is one; it needs no GPU. */
  @Test
  void argumentsAreLaidOutAsTheKernelsCompilerSays() {
    Nvrtc compiler = null;
    try {
      compiler = Nvrtc.get();
    } catch (UserException e) {
      Assumptions.abort(e.getMessage());
    }
    var source = Kernels.source();
    var checked = new Nvrtc.Source(source.text() + assertions(), source.headers());
    assertThat(compiler.compile(checked, Kernels.options(ALL), 90, folder)).isNotEmpty();
  }
}
