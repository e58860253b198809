package org.meteora.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import ai.djl.Device;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Random;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.UserException;
import org.meteora.model.LlamaTraining.Recompute;
import org.meteora.parallel.Collective;
import org.meteora.safetensors.SafetensorsFile;
import org.meteora.safetensors.SafetensorsWriter;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.train.batch.Batches;
import org.meteora.train.batch.TrainingSample;
import org.meteora.train.listener.Evaluation;
import org.meteora.train.listener.StepReport;
import org.meteora.train.listener.TrainingListener;
import org.meteora.train.optim.CosineSchedule;
import org.meteora.train.optim.FlatParameters;

/** Stopping, dying, full disks and diverging losses. */
class ResumeTest {
  static final List<String> TASKS = List.of("a", "b", "c");

  static List<TrainingSample> samples() {
    var random = new Random(5);
    var result = new ArrayList<TrainingSample>();
    for (int i = 0; i < 40; i++) {
      var tokens = random.ints(3 + random.nextInt(12), 0, 23).toArray();
      result.add(new TrainingSample("s:" + i, tokens, 1, i % 3));
    }
    return result;
  }

  static TrainConfig config(int steps, int saveSteps) {
    return TrainConfig.meteora(
        Map.of(),
        Map.of(
            "recipe",
            "paper",
            "keep",
            "best",
            "max_steps",
            steps,
            "save_steps",
            saveSteps,
            "learning_rate",
            1e-2,
            "eval_steps",
            4,
            "save_total_limit",
            2));
  }

  /** Every step's losses and the last parameters. */
  record Outcome(
      Map<Long, Double> losses, Map<Long, Double> answers, long kept, float[] parameters) {}

  static Outcome train(
      Path folder,
      TrainConfig config,
      Optional<Path> resume,
      BooleanSupplier stop,
      Consumer<Path> export) {
    try (var tiny = new Tiny(Dtype.F32, 0.1, 1);
        var parameters = new FlatParameters(tiny.manager, tiny.parameters)) {
      var losses = new HashMap<Long, Double>();
      var answers = new HashMap<Long, Double>();
      var schedule =
          CosineSchedule.of(config.learningRate(), config.warmupRatio(), config.steps(9, 1));
      TrainingListener listener =
          new TrainingListener() {
            @Override
            public void onStep(StepReport report) {
              losses.put(report.step(), report.losses().total());
              assertThat(report.learningRate()).isEqualTo(schedule.rate(report.step() - 1));
            }

            @Override
            public void onEvaluation(long step, Evaluation evaluation) {
              answers.put(step, evaluation.answerLoss());
            }
          };
      var samples = samples();
      var decided = config.as(false, false);
      var learner =
          new LlamaLearner(
              tiny.llama, Tiny.context(2, org.meteora.moe.ForwardMode.AUTO), Recompute.ALL, 3);
      var heldOut =
          new HeldOut(decided, 50, learner, samples.subList(34, 40), TASKS, Collective.single());
      var outcome =
          new Trainer(
                  decided,
                  decided.first(9, 1),
                  0,
                  learner,
                  parameters,
                  new Batches(samples.subList(0, 34), 4, false, 42),
                  heldOut,
                  TASKS,
                  new RunIdentity(
                      config.identity(),
                      Map.of("data", Long.toHexString(Batches.fingerprint(samples)))),
                  folder,
                  export,
                  Collective.single(),
                  List.of(listener),
                  stop)
              .run(resume);
      return new Outcome(losses, answers, outcome.kept(), parameters.values().toFloatArray());
    }
  }

  @Test
  void resumingIsBitForBitAsNeverStopping(@TempDir Path folder) {
    var whole =
        train(folder.resolve("whole"), config(17, 100), Optional.empty(), () -> false, p -> {});
    for (int at : new int[] {1, 6, 13}) {
      var part = folder.resolve("part" + at);
      int[] asked = {0};
      train(part, config(17, 100), Optional.empty(), () -> asked[0]++ >= at, p -> {});
      var checkpoint = new Checkpoints(part, 2).latest().orElseThrow();
      assertThat(checkpoint.getFileName()).hasToString("checkpoint-%08d".formatted(at));
      var rest = train(part, config(17, 100), Optional.of(checkpoint), () -> false, p -> {});
      assertThat(rest.losses()).hasSize(17 - at);
      rest.losses().forEach((step, loss) -> assertThat(loss).isEqualTo(whole.losses().get(step)));
      assertThat(rest.parameters()).isEqualTo(whole.parameters());
    }
  }

  @Test
  void onlyTheLastCheckpointsStay(@TempDir Path folder) {
    train(folder, config(9, 2), Optional.empty(), () -> false, p -> {});
    assertThat(new Checkpoints(folder, 2).list())
        .extracting(path -> path.getFileName().toString())
        .containsExactly("checkpoint-00000008", "checkpoint-00000009");
    assertThat(folder.toFile().list()).hasSize(3).contains("best.safetensors");
  }

  /** One number would otherwise fill all parameters without a word. */
  @Test
  void aBestModelOfAnotherShapeIsRefusedBeforeTheWork(@TempDir Path folder) {
    train(folder, config(4, 2), Optional.empty(), () -> false, p -> {});
    var from = Optional.of(folder.resolve("checkpoint-%08d".formatted(2)));
    try (var manager = Devices.newManager(Device.cpu())) {
      SafetensorsWriter.write(
          folder.resolve("best.safetensors"),
          Map.of("parameters", manager.create(new float[] {1})),
          Map.of("step", "2", "answer_loss", "0.5"));
    }
    var steps = new AtomicInteger();
    assertThatThrownBy(
            () ->
                train(
                    folder,
                    config(4, 2),
                    from,
                    () -> {
                      steps.incrementAndGet();
                      return false;
                    },
                    p -> {}))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("best.safetensors")
        .hasMessageContaining("[1]");
    assertThat(steps).hasValue(0);
  }

  /** At a rate that makes it worse: the best evaluation's parameters come back, or the last's. */
  @Test
  void theResultIsTheBestEvaluations(@TempDir Path folder) {
    for (var keep : List.of("best", "last")) {
      var options = new HashMap<String, Object>();
      options.putAll(Map.of("recipe", "paper", "keep", keep, "max_steps", 12, "eval_steps", 2));
      options.putAll(Map.of("save_steps", 2, "save_total_limit", 9, "learning_rate", 3));
      options.put("max_grad_norm", 0);
      var config = TrainConfig.meteora(Map.of(), options);
      var into = folder.resolve(keep);
      var whole = train(into, config, Optional.empty(), () -> false, p -> {});
      var best =
          whole.answers().entrySet().stream()
              .filter(entry -> entry.getKey() > 0)
              .min(Map.Entry.comparingByValue())
              .orElseThrow()
              .getKey();
      assertThat(best).isLessThan(12);
      long expected = keep.equals("best") ? best : 12;
      assertThat(whole.kept()).isEqualTo(expected);
      var checkpoint = into.resolve("checkpoint-%08d/trainer.safetensors".formatted(expected));
      try (var file = SafetensorsFile.open(checkpoint);
          var manager = Devices.newManager(Device.cpu())) {
        assertThat(whole.parameters()).isEqualTo(file.read(manager, "parameters").toFloatArray());
      }
      // the same from a checkpoint before the best step, and from one after it
      for (var at : List.of(2L, 10L)) {
        var from = Optional.of(into.resolve("checkpoint-%08d".formatted(at)));
        var rest = train(into, config, from, () -> false, p -> {});
        assertThat(rest.parameters()).isEqualTo(whole.parameters());
      }
    }
  }

  private static TrainConfig config(int steps, String name, Object value) {
    var options = new HashMap<String, Object>(Map.of("max_steps", steps, "recipe", "paper"));
    options.put(name, value);
    return TrainConfig.meteora(Map.of(), options);
  }

  @Test
  void otherSettingsAreRefused(@TempDir Path folder) {
    train(folder, config(2, "save_steps", 2), Optional.empty(), () -> false, p -> {});
    var checkpoint = new Checkpoints(folder, 2).latest();
    Map.of(
            "batch_size was 4, now it is 3", config(4, "batch_size", 3),
            "learning_rate was 5.0E-4, now it is 0.001", config(4, "learning_rate", 1e-3),
            "warmup_ratio was 0.005, now it is 0.1", config(4, "warmup_ratio", 0.1),
            "weight_decay was 0.01, now it is 0.0", config(4, "weight_decay", 0),
            "max_grad_norm was 0.3, now it is 1.0", config(4, "max_grad_norm", 1),
            "dropout was 0.1, now it is 0.0", config(4, "dropout", 0),
            "gate_loss_weight was 50.0, now it is 5.0", config(4, "gate_loss_weight", 5),
            "routing_top_k was 2, now it is 1", config(4, "routing_top_k", 1),
            "eval_ratio was 0.1, now it is 0.2", config(4, "eval_ratio", 0.2),
            "train was all, now it is gates", config(4, "train", "gates"))
        .forEach(
            (message, other) ->
                assertThatThrownBy(() -> train(folder, other, checkpoint, () -> false, p -> {}))
                    .isInstanceOf(UserException.class)
                    .hasMessage("cannot resume from " + checkpoint.get() + ": " + message));
  }

  @Test
  void moreStepsGoOnAndFewerAreRefused(@TempDir Path folder) {
    train(folder, config(3, "save_steps", 3), Optional.empty(), () -> false, p -> {});
    var checkpoint = new Checkpoints(folder, 2).latest();
    assertThatThrownBy(
            () -> train(folder, config(2, "eval_steps", 9), checkpoint, () -> false, p -> {}))
        .isInstanceOf(UserException.class)
        .hasMessage(
            "cannot resume: %s is at step 3, beyond the 2 steps asked for"
                .formatted(checkpoint.get()));
    assertThat(new Checkpoints(folder, 2).latest()).isEqualTo(checkpoint);
    var rest = train(folder, config(5, "eval_steps", 9), checkpoint, () -> false, p -> {});
    assertThat(rest.losses()).containsOnlyKeys(4L, 5L);
  }

  @Test
  void aFullDiskIsReportedAndEarlierCheckpointsStay(@TempDir Path folder) {
    Consumer<Path> fullAfterTwo =
        new Consumer<>() {
          private int calls;

          @Override
          public void accept(Path path) {
            if (++calls > 2) {
              throw new UserException("cannot write " + path + ": No space left on device");
            }
          }
        };
    assertThatThrownBy(
            () -> train(folder, config(8, 2), Optional.empty(), () -> false, fullAfterTwo))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("its last checkpoint could not be written");
    assertThat(new Checkpoints(folder, 2).list())
        .extracting(path -> path.getFileName().toString())
        .containsExactly("checkpoint-00000002", "checkpoint-00000004");
    assertThat(folder.toFile().list()).hasSize(3);
  }

  /** A file system of 100 kB, where the right to mount one is given. */
  @Test
  void aDiskThatIsReallyFull(@TempDir Path parent) throws Exception {
    var folder = Files.createDirectory(parent.resolve("small"));
    Assumptions.assumeTrue(
        run("mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", folder.toString()),
        "skipped: mounting a small file system is not allowed here");
    try {
      var config =
          TrainConfig.meteora(
              Map.of(),
              Map.of("recipe", "paper", "max_steps", 12, "save_steps", 1, "save_total_limit", 50));
      assertThatThrownBy(() -> train(folder, config, Optional.empty(), () -> false, p -> {}))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("its last checkpoint could not be written");
      var kept = new Checkpoints(folder, 50).list();
      assertThat(kept).isNotEmpty().hasSizeLessThan(12);
      assertThat(folder.toFile().list()).hasSize(kept.size());
      var asked = new int[1];
      train(folder, config, Optional.of(kept.getFirst()), () -> asked[0]++ >= 0, p -> {});
    } finally {
      run("umount", folder.toString());
    }
  }

  /** A checkpoint with other tensors or metadata than a training writes. */
  private static void change(
      Path checkpoint, Map<String, String> metadata, Map<String, float[]> tensors) {
    var path = checkpoint.resolve("trainer.safetensors");
    try (var manager = Devices.newManager(ai.djl.Device.cpu());
        var file = SafetensorsFile.open(path)) {
      var all = new HashMap<String, ai.djl.ndarray.NDArray>();
      for (var name : file.tensors().keySet()) {
        all.put(
            name,
            tensors.containsKey(name)
                ? manager.create(tensors.get(name))
                : file.read(manager, name).duplicate());
      }
      var meta = new HashMap<>(file.metadata());
      meta.putAll(metadata);
      SafetensorsWriter.write(path, all, meta);
    }
  }

  /** What no training writes is refused, and the checkpoint before it is named. */
  @Test
  void aDamagedCheckpointNamesTheOneBeforeIt(@TempDir Path parent) throws IOException {
    var whole = parent.resolve("whole");
    train(whole, config(4, 2), Optional.empty(), () -> false, p -> {});
    int size;
    try (var file =
        SafetensorsFile.open(whole.resolve("checkpoint-00000004/trainer.safetensors"))) {
      size = (int) (long) file.tensors().get("parameters").shape().getFirst();
    }
    var negative = new float[size];
    negative[size - 1] = -1e-9f;
    var notFinite = new float[size];
    notFinite[3] = Float.NaN;
    int number = 0;
    for (Consumer<Path> damage :
        List.<Consumer<Path>>of(
            at -> change(at, Map.of(), Map.of("parameters", new float[1])),
            at -> change(at, Map.of(), Map.of("adam.mean", new float[size + 1])),
            at -> change(at, Map.of(), Map.of("adam.variance", negative)),
            at -> change(at, Map.of(), Map.of("parameters", notFinite)),
            at -> change(at, Map.of("step", "-4"), Map.of()),
            at -> change(at, Map.of("step", "3"), Map.of()),
            at -> change(at, Map.of("planned_steps", "1"), Map.of()),
            at -> change(at, Map.of("optimizer_steps", "99999999999999999999"), Map.of()),
            at -> change(at, Map.of("identity", "{"), Map.of()),
            at -> change(at, Map.of("format", "x"), Map.of()),
            at -> cut(at.resolve("trainer.safetensors")))) {
      var folder = parent.resolve("run" + number++);
      copy(whole, folder);
      var last = folder.resolve("checkpoint-00000004");
      damage.accept(last);
      assertThatThrownBy(() -> train(folder, config(6, 2), Optional.of(last), () -> false, p -> {}))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("checkpoint-00000004/trainer.safetensors is damaged")
          .hasMessageContaining("the one before it is " + folder.resolve("checkpoint-00000002"));
    }
  }

  private static void cut(Path file) {
    try (var channel =
        java.nio.channels.FileChannel.open(file, java.nio.file.StandardOpenOption.WRITE)) {
      channel.truncate(channel.size() - 7);
    } catch (IOException e) {
      throw new java.io.UncheckedIOException(e);
    }
  }

  private static void copy(Path from, Path to) throws IOException {
    try (var all = Files.walk(from)) {
      for (var each : all.toList()) {
        Files.copy(each, to.resolve(from.relativize(each).toString()));
      }
    }
  }

  @Test
  void oneRunAtATime(@TempDir Path folder) throws IOException {
    Files.createDirectories(folder.resolve(".checkpoint-7.tmp/half"));
    try (var lock = Checkpoints.lock(folder)) {
      assertThat(folder.resolve(".checkpoint-7.tmp")).doesNotExist();
      assertThatThrownBy(() -> Checkpoints.lock(folder))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("another run is training into " + folder);
    }
    Checkpoints.lock(folder).close();
  }

  private static boolean run(String... command) throws InterruptedException {
    try {
      return new ProcessBuilder(command)
              .redirectErrorStream(true)
              .redirectOutput(ProcessBuilder.Redirect.DISCARD)
              .start()
              .waitFor()
          == 0;
    } catch (IOException e) {
      return false;
    }
  }

  @Test
  void aDivergingLossNamesStepAndSamples(@TempDir Path folder) throws IOException {
    var config =
        TrainConfig.meteora(
            Map.of(),
            Map.of(
                "recipe",
                "paper",
                "max_steps",
                60,
                "save_steps",
                1,
                "learning_rate",
                1e3,
                "max_grad_norm",
                0,
                "weight_decay",
                1,
                "warmup_ratio",
                0));
    assertThatThrownBy(() -> train(folder, config, Optional.empty(), () -> false, p -> {}))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("training stopped in step")
        .hasMessageContaining("samples s:")
        .hasMessageContaining("checkpoint-");
    var checkpoint = new Checkpoints(folder, 3).latest().orElseThrow();
    assertThat(Files.size(checkpoint.resolve("trainer.safetensors"))).isPositive();
  }
}
