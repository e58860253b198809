package org.meteora.parallel;

import static java.lang.foreign.ValueLayout.ADDRESS;
import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import ai.djl.Device;
import ai.djl.ndarray.NDManager;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.meteora.foreign.Functions;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * Real processes under the mpirun of Open MPI and of MPICH; skipped where that one is not
 * installed.
 */
class MpiTest {
  @ParameterizedTest
  @ValueSource(strings = {"mpirun.openmpi", "mpirun.mpich"})
  void collectivesOfThreeProcesses(String mpirun) throws Exception {
    var output = run(mpirun, 3, "collectives");
    assertThat(output.lines().filter(line -> line.startsWith("right "))).hasSize(3);
  }

  @ParameterizedTest
  @ValueSource(strings = {"mpirun.openmpi", "mpirun.mpich"})
  void otherSettingsAreRefusedByAll(String mpirun) throws Exception {
    var output = run(mpirun, 2, "settings");
    assertThat(output.lines().filter(line -> line.contains("started differently")))
        .hasSize(2)
        .allSatisfy(line -> assertThat(line).contains("rank 0 has seed 0, rank 1 has seed 1"));
  }

  static String run(String mpirun, int processes, String what) throws Exception {
    var program = find(mpirun);
    assumeTrue(program != null, "skipped: there is no " + mpirun + " here");
    var command = new ArrayList<String>();
    command.add(program.toString());
    if (mpirun.endsWith("openmpi")) {
      command.addAll(List.of("--allow-run-as-root", "--oversubscribe"));
    }
    command.addAll(
        List.of(
            "-n",
            String.valueOf(processes),
            Path.of(System.getProperty("java.home"), "bin", "java").toString(),
            "--enable-native-access=ALL-UNNAMED",
            "-cp",
            System.getProperty("java.class.path"),
            Program.class.getName(),
            what));
    var process = new ProcessBuilder(command).redirectErrorStream(true).start();
    try {
      var output = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
      assertThat(process.waitFor(120, TimeUnit.SECONDS)).isTrue();
      return output;
    } finally {
      process.destroyForcibly();
    }
  }

  private static Path find(String name) {
    return Arrays.stream(System.getenv("PATH").split(":"))
        .map(folder -> Path.of(folder, name))
        .filter(Files::isExecutable)
        .findFirst()
        .orElse(null);
  }

  /** What runs in each process. */
  static final class Program {
    private Program() {}

    public static void main(String[] args) throws IOException {
      var launch = Launch.of(System.getenv());
      var settings =
          List.of("tasks a,b", "seed " + (args[0].equals("settings") ? launch.rank() : 7));
      var handler = segmentationFaults();
      try (var manager = Devices.newManager(Device.cpu());
          var all =
              Processes.join(
                  launch,
                  Device.cpu(),
                  "",
                  settings,
                  lost -> {
                    System.out.println(lost.message());
                    Runtime.getRuntime().halt(1);
                  })) {
        collectives(manager, all);
        if (!handler.equals(segmentationFaults())) {
          throw new IllegalStateException("MPI has taken the JVM's signals: it will crash");
        }
        System.out.println("right " + all.rank());
      } catch (RuntimeException e) {
        System.out.println(e.getMessage());
        System.exit(1);
      }
    }

    /** The address of what handles SIGSEGV, which the JVM itself raises and needs. */
    private static MemorySegment segmentationFaults() {
      var sigaction = Functions.bind("sigaction", "(IAA)I");
      try (var arena = Arena.ofConfined()) {
        var old = arena.allocate(152, 8); // struct sigaction of Linux on x86-64: the handler first
        int code = (int) sigaction.invokeExact(11, MemorySegment.NULL, old);
        assertThat(code).isZero();
        return old.get(ADDRESS, 0);
      } catch (Throwable e) {
        throw Functions.unchecked(e);
      }
    }

    private static void collectives(NDManager manager, Collective all) {
      int n = all.size();
      int rank = all.rank();
      long length = 100_003;
      var values = new float[(int) length];
      var expected = new float[(int) length];
      for (int i = 0; i < length; i++) {
        values[i] = value(rank, i);
        for (int r = 0; r < n; r++) {
          expected[i] += value(r, i); // exact: small integers
        }
      }
      var buffer = manager.create(values);
      all.sum(buffer);
      same(expected, buffer.toFloatArray(), "sum");

      var reduced = manager.create(values);
      all.reduceAside(reduced, 1).await();
      if (rank == 1) {
        same(expected, reduced.toFloatArray(), "reduce");
      }

      int part = 1_001;
      var parts = Arrays.copyOf(values, part * n);
      var whole = manager.create(parts);
      var own = Ops.narrow(whole, 0, (long) part * rank, part);
      all.reduceScatter(whole, own);
      same(
          Arrays.copyOfRange(expected, part * rank, part * (rank + 1)),
          own.toFloatArray(),
          "reduceScatter");
      all.allGather(own, whole);
      same(Arrays.copyOf(expected, part * n), whole.toFloatArray(), "allGather");

      var halves = Ops.convert(manager.create(Arrays.copyOf(values, 3)), Dtype.BF16);
      var gathered = Ops.empty(manager, Dtype.BF16, 3L * n);
      all.allGather(halves, gathered);
      var wanted = new float[3 * n];
      for (int i = 0; i < wanted.length; i++) {
        wanted[i] = value(i / 3, i % 3);
      }
      same(wanted, Ops.cast(gathered, Dtype.F32).toFloatArray(), "allGather bf16");

      var first = manager.create(values);
      all.broadcast(first);
      var ofFirst = new float[(int) length];
      for (int i = 0; i < length; i++) {
        ofFirst[i] = value(0, i);
      }
      same(ofFirst, first.toFloatArray(), "broadcast");

      var sums = all.sum(new double[] {rank, 0.5});
      if (sums[0] != n * (n - 1) / 2.0 || sums[1] != n * 0.5) {
        throw new IllegalStateException("sum of numbers: " + Arrays.toString(sums));
      }
      all.barrier();
    }

    private static float value(int rank, int i) {
      return (i * 31 + rank * 17) % 97 - 48;
    }

    private static void same(float[] expected, float[] actual, String what) {
      if (!Arrays.equals(expected, actual)) {
        throw new IllegalStateException(what + " is wrong");
      }
    }
  }
}
