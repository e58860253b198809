package org.meteora.train;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Optional;
import java.util.Random;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.safetensors.SafetensorsFile;

/** A training process that is killed again and again, mostly while it writes checkpoints. */
class KillTest {
  private static final int STEPS = 400;
  private static final int KILLS = 5;

  /** The victim: goes on from the last checkpoint, writes one after every step. */
  static final class Victim {
    private Victim() {}

    /**
     * @param args the run's folder
     */
    public static void main(String[] args) {
      var folder = Path.of(args[0]);
      int steps = Integer.parseInt(args[1]);
      var latest = new Checkpoints(folder, 2).latest();
      System.out.println("from " + latest);
      var outcome =
          ResumeTest.train(
              folder,
              ResumeTest.config(steps, 1),
              latest,
              () -> false,
              path -> System.out.println(path.getFileName()));
      System.out.println("finished " + outcome.losses().size());
    }
  }

  private static Process start(Path folder, int steps) throws IOException {
    return new ProcessBuilder(
            ProcessHandle.current().info().command().orElseThrow(),
            "--enable-native-access=ALL-UNNAMED",
            "--add-modules",
            "jdk.incubator.vector",
            "-Xshare:auto",
            "-XX:TieredStopAtLevel=1",
            "-cp",
            System.getProperty("java.class.path"),
            Victim.class.getName(),
            folder.toString(),
            String.valueOf(steps))
        .redirectError(ProcessBuilder.Redirect.DISCARD)
        .start();
  }

  @Test
  void everyDeathLeavesALoadableCheckpoint(@TempDir Path folder) throws Exception {
    Assumptions.assumeTrue(Files.isDirectory(Path.of("/proc/self")), "skipped: not Linux");
    var random = new Random();
    long seed = random.nextLong();
    random.setSeed(seed);
    long before = 0;
    for (int kill = 0; kill < KILLS; kill++) {
      var process = start(folder, STEPS);
      try (var lines = process.inputReader()) {
        int seen = 0;
        int wanted = 2 + random.nextInt(6);
        for (String line; seen < wanted && (line = lines.readLine()) != null; ) {
          seen += line.startsWith(".checkpoint-") ? 1 : 0;
        }
        Thread.sleep(0, random.nextInt(1_000_000));
        Thread.sleep(random.nextInt(25));
        process.destroyForcibly();
        process.waitFor();
      }
      var latest = new Checkpoints(folder, 2).latest();
      assertThat(latest).as("kill %d, seed %d", kill, seed).isPresent();
      try (var file = SafetensorsFile.open(latest.get().resolve("trainer.safetensors"))) {
        long step = Long.parseLong(file.metadata().get("step"));
        assertThat(step).as("seed %d", seed).isGreaterThanOrEqualTo(before + 1);
        before = step;
      }
    }
    // what is left goes on to the same end as a run that nobody killed
    long end = before + 2;
    var config = ResumeTest.config(STEPS, STEPS);
    var last = new Checkpoints(folder, 2).latest();
    var rest = ResumeTest.train(folder, config, last, stopAfter(2), path -> {});
    var whole =
        ResumeTest.train(
            folder.resolve("whole"), config, Optional.empty(), stopAfter(end), path -> {});
    assertThat(rest.parameters()).as("seed %d", seed).isEqualTo(whole.parameters());
    assertThat(List.of(folder.toFile().list()))
        .as("nothing half-written stays")
        .noneMatch(name -> name.startsWith("."));
  }

  private static java.util.function.BooleanSupplier stopAfter(long steps) {
    long[] asked = {0};
    return () -> asked[0]++ >= steps;
  }
}
