package org.meteora.cli;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.io.Jsonl;

/**
 * Several processes under mpirun, on the CPU, with the embedded tiny model; skipped where there is
 * no MPI.
 */
class ProcessesTest {
  private static final Path TINY =
      Path.of(System.getProperty("meteora.root", ".."), "configs/tiny").toAbsolutePath();

  @TempDir Path folder;
  private final List<Process> started = new ArrayList<>();

  private record Result(int code, String out, String err) {}

  @AfterEach
  void endWhatIsLeft() {
    started.forEach(
        process -> {
          process.descendants().forEach(ProcessHandle::destroyForcibly);
          process.destroyForcibly();
        });
  }

  private static List<String> models() {
    return List.of(
        "--base-model-path=" + TINY.resolve("base"),
        "--meteora-ckpt-path=" + TINY.resolve("meteora"),
        "--adapter-dir=" + TINY.resolve("adapters"),
        "--target-dir=" + TINY.resolve("datasets"),
        "--device=cpu");
  }

  private List<String> training(String output, int accumulation, int steps) {
    var result = new ArrayList<>(List.of("train"));
    result.addAll(models());
    result.addAll(
        List.of(
            "--tasks=reverse_word,sort_letters",
            "--train=all",
            "--learning-rate=1e-2",
            "--batch-size=2",
            "--eval-samples=4",
            "--eval-steps=1000000",
            "--save-steps=2",
            "--max-steps=" + steps,
            "--gradient-accumulation-steps=" + accumulation,
            "--output-dir=" + folder.resolve(output)));
    return result;
  }

  private static Path mpirun(String name) {
    var found =
        Arrays.stream(System.getenv("PATH").split(":"))
            .map(bin -> Path.of(bin, name))
            .filter(Files::isExecutable)
            .findFirst();
    assumeTrue(found.isPresent(), "skipped: there is no " + name + " here");
    return found.get();
  }

  private static List<String> java() {
    return List.of(
        Path.of(System.getProperty("java.home"), "bin", "java").toString(),
        "-Xmx512m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "--enable-native-access=ALL-UNNAMED",
        "--sun-misc-unsafe-memory-access=allow",
        "-Djava.awt.headless=true",
        "-cp",
        System.getProperty("java.class.path"),
        Main.class.getName());
  }

  private Process start(String mpirun, int processes, List<String> arguments) throws IOException {
    var command = new ArrayList<String>();
    if (processes > 1) {
      command.add(mpirun(mpirun).toString());
      if (mpirun.endsWith("openmpi")) {
        command.addAll(List.of("--allow-run-as-root", "--oversubscribe", "--bind-to", "none"));
      }
      command.addAll(List.of("-n", String.valueOf(processes)));
    }
    command.addAll(java());
    command.addAll(arguments);
    var builder = new ProcessBuilder(command);
    builder.environment().put("OMP_NUM_THREADS", "1");
    builder.redirectOutput(folder.resolve("out").toFile());
    builder.redirectError(folder.resolve("err").toFile());
    var process = builder.start();
    started.add(process);
    return process;
  }

  private Result end(Process process) throws Exception {
    assertThat(process.waitFor(120, TimeUnit.SECONDS)).isTrue();
    return new Result(
        process.exitValue(),
        Files.readString(folder.resolve("out"), StandardCharsets.UTF_8),
        Files.readString(folder.resolve("err"), StandardCharsets.UTF_8));
  }

  private Result run(String mpirun, int processes, List<String> arguments) throws Exception {
    return end(start(mpirun, processes, arguments));
  }

  private Map<Long, Double> losses(String run) {
    var result = new HashMap<Long, Double>();
    Jsonl.forEach(
        folder.resolve(run).resolve("metrics.jsonl"),
        (node, line) -> {
          if (node.get("event").asText().equals("step")) {
            result.put(node.get("step").asLong(), node.get("loss").asDouble());
          }
        });
    return result;
  }

  private void same(String run, String other) {
    same(run, other, 4);
  }

  private void same(String run, String other, int steps) {
    var expected = losses(run);
    var actual = losses(other);
    assertThat(actual).hasSameSizeAs(expected).hasSize(steps);
    expected.forEach(
        (step, loss) -> assertThat(actual.get(step)).isCloseTo(loss, within(1e-6 * loss)));
  }

  /** The same steps on 1, 2 and 4 processes, and from a checkpoint of 4 on 2. */
  @Test
  void stepsDoNotDependOnTheNumberOfProcesses() throws Exception {
    mpirun("mpirun.openmpi");
    assertThat(run("", 1, training("one", 4, 4)).code()).isZero();
    var two = run("mpirun.openmpi", 2, training("two", 2, 4));
    assertThat(two.code()).as(two.err()).isZero();
    assertThat(two.out().strip().lines()).containsExactly(folder.resolve("two/meteora").toString());
    assertThat(two.err()).containsOnlyOnce("wrote ".concat(checkpoint("two", 2).toString()));
    same("one", "two");
    var sharing = new ArrayList<>(training("shared", 2, 4));
    sharing.add("--shard-base");
    var shared = run("mpirun.openmpi", 2, sharing);
    assertThat(shared.code()).as(shared.err()).isZero();
    same("one", "shared");
    var mpich = Files.isExecutable(Path.of("/usr/bin/mpirun.mpich"));
    var four = run(mpich ? "mpirun.mpich" : "mpirun.openmpi", 4, training("four", 1, 4));
    assertThat(four.code()).as(four.err()).isZero();
    same("one", "four");

    delete(checkpoint("four", 4));
    var resume = new ArrayList<>(training("four", 2, 4));
    resume.add("--resume");
    var rest = run("mpirun.openmpi", 2, resume);
    assertThat(rest.code()).as(rest.err()).isZero();
    same("one", "four");
  }

  /** A second part of the run, in which the adapters are trained too, begins in both. */
  @Test
  void processesDecideAlike() throws Exception {
    mpirun("mpirun.openmpi");
    for (var task : List.of("crow", "zebra")) {
      var lines = new StringBuilder();
      for (int i = 0; i < 24; i++) {
        var sample = Map.of("prompt", task + " " + i + "\n", "response", task + task);
        lines.append(Jsonl.JSON.writeValueAsString(sample)).append('\n');
      }
      Files.createDirectories(folder.resolve("data").resolve(task));
      Files.writeString(folder.resolve("data").resolve(task).resolve("train.jsonl"), lines);
    }
    var common =
        List.of(
            "--base-model-path=" + TINY.resolve("base"),
            "--adapter-dir=" + folder.resolve("adapters"),
            "--target-dir=" + folder.resolve("data"),
            "--device=cpu");
    var lora =
        new ArrayList<>(
            List.of("train-lora", "--task=crow,zebra", "--max-steps=40", "--learning-rate=1e-2"));
    lora.addAll(common);
    assertThat(Main.run(lora.toArray(String[]::new))).isZero();
    for (int processes : new int[] {1, 2}) {
      var command =
          new ArrayList<>(
              List.of(
                  "train",
                  "--learning-rate=1e-6", // gates guess
                  "--batch-size=2",
                  "--gradient-accumulation-steps=" + 2 / processes,
                  "--max-steps=4",
                  "--output-dir=" + folder.resolve("run" + processes)));
      command.addAll(common);
      var result = run("mpirun.openmpi", processes, command);
      assertThat(result.code()).as(result.err()).isZero();
      assertThat(result.err()).containsOnlyOnce("from step 5 on");
    }
    same("run1", "run2", 8);
  }

  private Path checkpoint(String run, int step) {
    return folder.resolve(run).resolve("checkpoint-%08d".formatted(step));
  }

  private static void delete(Path tree) throws IOException {
    try (var all = Files.walk(tree)) {
      for (var path : all.sorted(java.util.Comparator.reverseOrder()).toList()) {
        Files.delete(path);
      }
    }
  }

  private ProcessHandle process(Process mpirun, int rank) throws Exception {
    for (int i = 0; i < 600 && !Files.exists(checkpoint("run", 2)); i++) {
      Thread.sleep(100);
    }
    assertThat(checkpoint("run", 2)).exists();
    return mpirun
        .descendants()
        .filter(each -> environment(each).contains("OMPI_COMM_WORLD_RANK=" + rank))
        .findFirst()
        .orElseThrow();
  }

  private static Set<String> environment(ProcessHandle process) {
    try {
      var all = Files.readString(Path.of("/proc", String.valueOf(process.pid()), "environ"));
      return Set.of(all.split("\0"));
    } catch (IOException | IllegalArgumentException e) {
      return Set.of();
    }
  }

  @Test
  void aLostProcessEndsAllAndIsNamed() throws Exception {
    var all = start("mpirun.openmpi", 2, training("run", 1, 100_000));
    process(all, 1).destroyForcibly();
    var result = end(all);
    assertThat(result.code()).isNotZero();
    assertThat(result.err()).containsOnlyOnce("rank 1 was lost");
    // what it left can be gone on with: here from the last checkpoint to itself
    var resume = new ArrayList<>(training("run", 2, lastStep()));
    resume.add("--resume");
    var rest = run("", 1, resume);
    assertThat(rest.code()).as(rest.err()).isZero();
  }

  private int lastStep() throws IOException {
    try (var left = Files.list(folder.resolve("run"))) {
      return left.map(path -> path.getFileName().toString())
          .filter(name -> name.startsWith("checkpoint-"))
          .mapToInt(name -> Integer.parseInt(name.substring("checkpoint-".length())))
          .max()
          .orElseThrow();
    }
  }

  @Test
  void sigtermInOneProcessIsACheckpointOfAll() throws Exception {
    var all = start("mpirun.openmpi", 2, training("run", 1, 100_000));
    process(all, 1).destroy();
    var result = end(all);
    assertThat(result.err())
        .containsOnlyOnce("stopped after step " + lastStep() + " of 100000; go on with --resume");
  }

  @Test
  void answersAreThoseOfOneProcess() throws Exception {
    mpirun("mpirun.openmpi");
    var arguments = new ArrayList<>(List.of("eval", "--task=reverse_word", "--greedy", "--save"));
    arguments.addAll(models());
    // many more than there is room for at once
    var data = Files.createDirectories(folder.resolve("datasets/reverse_word"));
    var lines = Files.readAllLines(TINY.resolve("datasets/reverse_word/test.jsonl"));
    Files.write(
        data.resolve("test.jsonl"),
        java.util.stream.Stream.of(lines, lines, lines, lines).flatMap(List::stream).toList());
    arguments.add("--target-dir=" + data.getParent());
    arguments.remove("--target-dir=" + TINY.resolve("datasets"));
    arguments.addAll(List.of("--batch-size=1", "--max-length=40", "--routes"));
    var files =
        List.of(
            "meteora/reverse_word.answers.jsonl",
            "meteora/reverse_word.routes/routing.json",
            "meteora/reverse_word.routes/routing.html");
    for (var option : List.of("", "--shard-base")) {
      for (int processes : option.isEmpty() ? new int[] {1, 2} : new int[] {2}) {
        var own = new ArrayList<>(arguments);
        own.add("--eval-result-save-dir=" + folder.resolve("results" + processes + option));
        if (!option.isEmpty()) {
          own.add(option);
        }
        var result = run("mpirun.openmpi", processes, own);
        assertThat(result.code()).as(result.err()).isZero();
      }
    }
    for (var results : List.of("results2", "results2--shard-base")) {
      for (var file : files) {
        assertThat(folder.resolve(results).resolve(file))
            .hasSameBinaryContentAs(folder.resolve("results1").resolve(file));
      }
    }
  }

  /** What every process does by itself at the same time is measured beside what all do together. */
  @Test
  void aStepOfAllIsMeasuredBesideEachByItself() throws Exception {
    mpirun("mpirun.openmpi");
    var arguments =
        new ArrayList<>(
            List.of(
                "bench",
                "train",
                "--model-config=" + TINY.resolve("base/config.json"),
                "--device=cpu",
                "--batch=2",
                "--tokens=8",
                "--repeat=1",
                "--json"));
    var shared = new ArrayList<>(arguments);
    shared.addAll(List.of("--adapters=3", "--rank=2", "--shard-base"));
    var result = run("mpirun.openmpi", 2, shared);
    assertThat(result.code()).as(result.err()).isZero();
    var found = new HashMap<String, com.fasterxml.jackson.databind.JsonNode>();
    for (var line : result.out().lines().filter(each -> each.startsWith("{")).toList()) {
      var node = Jsonl.JSON.readTree(line);
      found.put(node.get("what").asText(), node);
    }
    double first = found.get("one process").get("ms").asDouble();
    double slowest = found.get("each by itself, the slowest").get("ms").asDouble();
    double mean = found.get("each by itself, the mean").get("ms").asDouble();
    double step = found.get("2 processes, base shared").get("ms").asDouble();
    assertThat(mean).isPositive().isLessThanOrEqualTo(slowest);
    assertThat(found.get("weak scaling").get("share").asDouble())
        .isCloseTo(first / step, within(1e-9));
    assertThat(found.get("of the step beyond the slowest's own").get("share").asDouble())
        .isCloseTo(1 - slowest / step, within(1e-9));
    // speeds of the two: one over the slowest's time, and over that of the other
    double together = first / slowest + first / (2 * mean - slowest);
    assertThat(found.get("of what all do by themselves").get("share").asDouble())
        .isCloseTo(2 * first / step / together, within(1e-9));

    assertThat(result.out().lines()).allSatisfy(line -> assertThat(line).startsWith("{"));

    // what does not fit is refused before it is loaded
    var large = new ArrayList<>(arguments);
    large.add("--adapters=100000000");
    var refused = run("mpirun.openmpi", 2, large);
    assertThat(refused.code()).isEqualTo(2);
    assertThat(refused.err()).contains("too little memory").contains("the optimizer");
  }

  @Test
  void theBaseIsSharedBySeveral() throws Exception {
    var alone = new ArrayList<>(training("alone", 1, 2));
    alone.add("--shard-base");
    var result = run("", 1, alone);
    assertThat(result.code()).isEqualTo(2);
    assertThat(result.err()).contains("--shard-base shares the base model among several processes");
    assertThat(folder.resolve("alone")).doesNotExist();
  }

  @Test
  void whatOneProcessDoesIsRefusedByAll() throws Exception {
    var arguments = new ArrayList<>(List.of("generate", "--prompt=x"));
    arguments.addAll(models());
    var result = run("mpirun.openmpi", 2, arguments);
    assertThat(result.code()).isEqualTo(2);
    assertThat(result.err())
        .contains("meteora generate is the work of one process, and this is one of 2");
  }
}
