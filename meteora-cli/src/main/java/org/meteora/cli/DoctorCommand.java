package org.meteora.cli;

import ai.djl.Device;
import ai.djl.pytorch.jni.JniUtils;
import com.sun.management.OperatingSystemMXBean;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.Callable;
import org.meteora.UserException;
import org.meteora.backend.Backends;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Nvrtc;
import org.meteora.data.config.JsonOption;
import org.meteora.data.hub.HubSettings;
import org.meteora.foreign.Functions;
import org.meteora.generate.DecodeSession;
import org.meteora.generate.GenerationConfig;
import org.meteora.generate.Generator;
import org.meteora.generate.ModelSession;
import org.meteora.io.CacheFolders;
import org.meteora.io.Fonts;
import org.meteora.io.Jsonl;
import org.meteora.model.Llama;
import org.meteora.model.RandomLlama;
import org.meteora.model.llama.LlamaConfig;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardMode;
import org.meteora.moe.RoutingSettings;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.LibTorch;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Spec;

/**
 * {@code meteora doctor}: what this machine has, what is missing, and a short test of each device.
 */
@Command(
    name = "doctor",
    description = {
      "Shows what this machine has for meteora, and tries each device for a few seconds: a model"
          + " with adapters against the plain formula, and its answers step by step. Each line says"
          + " ok, or what is missing and what to do. Exit code 1 if a model cannot run here.",
    },
    footer = {"", "Examples:", "  meteora doctor", "  meteora doctor --json"})
public final class DoctorCommand implements Callable<Integer> {
  /** Relative, of all logits' norm, in float32: sums in another order. */
  private static final double TOLERANCE = 1e-3;

  private static final long MIB = 1 << 20;

  @Spec private CommandSpec command;

  @Mixin private JsonOption json;

  /**
   * @param state ok, note (something optional is missing) or fails
   */
  private record Line(String name, String state, String text) {}

  /**
   * @param runs whether a model can run here
   */
  private record Report(boolean runs, List<Line> checks) {}

  /** A check: what it found, or why not. */
  private interface Check {
    String run() throws Exception;
  }

  private final List<Line> lines = new ArrayList<>();

  @Override
  public Integer call() {
    boolean runs = examine();
    var out = command.commandLine().getOut();
    if (json.isGiven()) {
      out.print(Jsonl.pretty(new Report(runs, lines)));
    } else {
      int width = lines.stream().mapToInt(line -> line.name().length()).max().orElse(0);
      for (var line : lines) {
        out.printf("%-" + width + "s  %-5s  %s%n", line.name(), line.state(), line.text());
      }
    }
    out.flush();
    return runs ? 0 : 1;
  }

  private boolean examine() {
    check(
        "java",
        true,
        () ->
            "%s, heap of at most %s MiB"
                .formatted(Runtime.version(), Runtime.getRuntime().maxMemory() / MIB));
    check("memory", true, DoctorCommand::memory);
    check("disk", true, DoctorCommand::disk);
    var driver = LibTorch.driver();
    check("driver", false, () -> driver(driver));
    boolean torch = check("pytorch", true, () -> LibTorch.load().toString());
    for (int i = 0; i < driver.gpus(); i++) {
      int index = i;
      check("gpu " + i, false, () -> gpu(index));
    }
    if (driver.gpus() > 0) {
      check(
          "nvrtc",
          false,
          () -> Nvrtc.get().version() + "; compiled kernels in " + CacheFolders.kernels());
      check("nccl", false, () -> library("several GPUs need it", "libnccl.so.2"));
    }
    check(
        "mpi",
        false,
        () ->
            library(
                "only training in several processes on CPUs needs it",
                "libmpi.so.40",
                "libmpi.so",
                "libmpich.so.12"));
    check("charts", false, Fonts::prepare);
    check(
        "hub token",
        false,
        () ->
            HubSettings.fromEnvironment().token().isPresent()
                ? "set"
                : "not set; only files that are not public need it (HF_TOKEN)");
    if (!torch) {
      return false;
    }
    boolean runs = check("test on cpu", true, () -> test(Device.cpu()));
    for (int i = 0; i < Devices.gpus(); i++) {
      var device = Device.gpu(i);
      runs &= check("test on " + Devices.name(device), true, () -> test(device));
    }
    return runs;
  }

  /** Adds a line; a failure of what is needed fails the whole. */
  private boolean check(String name, boolean needed, Check check) {
    try {
      lines.add(new Line(name, "ok", check.run()));
      return true;
    } catch (Exception | LinkageError e) {
      var message = String.valueOf(e.getMessage()).lines().findFirst().orElse("");
      lines.add(
          new Line(
              name,
              needed ? "fails" : "note",
              e instanceof UserException
                  ? message
                  : e.getClass().getSimpleName() + ": " + message));
      return false;
    }
  }

  private static String memory() {
    var processors = Runtime.getRuntime().availableProcessors() + " processors";
    return ManagementFactory.getOperatingSystemMXBean() instanceof OperatingSystemMXBean system
        ? "%,d MiB, %,d MiB free; %s"
            .formatted(
                system.getTotalMemorySize() / MIB, system.getFreeMemorySize() / MIB, processors)
        : processors;
  }

  private static String disk() throws IOException {
    var here = Path.of("").toAbsolutePath();
    if (!Files.isWritable(here)) {
      throw new UserException(here + " cannot be written to: work in another folder");
    }
    return "%,d MiB free in %s".formatted(Files.getFileStore(here).getUsableSpace() / MIB, here);
  }

  private static String driver(LibTorch.Driver driver) {
    if (driver.gpus() == 0) {
      throw new UserException("no NVIDIA GPU: models run on the CPU");
    }
    return "NVIDIA, up to CUDA " + driver.cuda() + ", " + driver.gpus() + " GPU(s)";
  }

  private static String gpu(int index) {
    var cuda = Cuda.device(index);
    var memory = cuda.memory();
    return "%s, compute capability %d.%d, %,d MiB, %,d MiB free"
        .formatted(
            cuda.name(),
            cuda.capability() / 10,
            cuda.capability() % 10,
            memory.total() / MIB,
            memory.free() / MIB);
  }

  private static String library(String use, String... names) {
    return Arrays.stream(names)
        .filter(name -> Functions.library(name).isPresent())
        .findFirst()
        .orElseThrow(() -> new UserException(names[0] + " is not found; " + use));
  }

  /** A small gated model: the device's own way against the plain formula, logits and answers. */
  private static String test(Device device) throws Exception {
    long begin = System.nanoTime();
    var config =
        LlamaConfig.parse(
            Jsonl.JSON.readTree(
                """
                {"model_type": "llama", "vocab_size": 320, "hidden_size": 256,
                 "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "num_key_value_heads": 2, "max_position_embeddings": 256,
                 "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
                """),
            "the doctor's model");
    try (var manager = Devices.newManager(device)) {
      JniUtils.setSeed(1);
      var backend = Backends.of(manager, Dtype.F32);
      var model = RandomLlama.create(config, manager, Dtype.F32, 6, 8, backend, 0);
      var decoding = Backends.decoding(model);
      var own = ForwardContext.inference(RoutingSettings.DEFAULT, Flags.AUTO);
      var plain =
          ForwardContext.inference(RoutingSettings.DEFAULT, Flags.of(ForwardMode.REFERENCE));
      var logits = BenchModel.prefill(model, 2, 24, own);
      var answer = answer(model, decoding, own);
      var expected = BenchModel.prefill(model, 2, 24, plain);
      var expectedAnswer = answer(model, ModelSession.of(model), plain);
      double difference = 0;
      double norm = 0;
      for (int i = 0; i < expected.length; i++) {
        difference += Math.pow(logits[i] - expected[i], 2);
        norm += Math.pow(expected[i], 2);
      }
      double error = Math.sqrt(difference / norm);
      if (!(error < TOLERANCE)) {
        throw new IllegalStateException(
            "a gated model is wrong by %.1e of its logits (at most %.0e)"
                .formatted(error, TOLERANCE));
      }
      if (!Arrays.equals(answer, expectedAnswer)) {
        throw new IllegalStateException(
            "step by step " + Arrays.toString(answer) + ", not " + Arrays.toString(expectedAnswer));
      }
      return "a gated model is right (%.0e), so are %d steps; %.1f s"
          .formatted(error, answer.length, (System.nanoTime() - begin) / 1e9);
    }
  }

  private static int[] answer(Llama model, DecodeSession.Provider decoding, ForwardContext context)
      throws Exception {
    try (decoding) {
      var config = GenerationConfig.greedy(List.of(), 64).withMaxNewTokens(16);
      return new Generator(model, decoding, context)
          .generate(List.of(new int[] {1, 2, 3, 5, 8, 13}), config)
          .getFirst();
    }
  }
}
