package org.meteora.train;

import ai.djl.Device;
import java.nio.file.Path;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Optional;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;
import org.meteora.UserException;
import org.meteora.train.batch.Batch;
import org.meteora.train.batch.Batches;
import org.meteora.train.optim.AdamW;
import org.meteora.train.optim.CosineSchedule;
import org.meteora.train.optim.FlatParameters;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The training loop. A step takes {@code accumulation × processes} micro-batches from the stream;
 * losses are means over the labels of all of them, so that a step's gradient does not depend on how
 * its samples are cut into micro-batches.
 *
 * <p>Everything a step does follows from the parameters, the optimiser's state, the step's number
 * and the seed. So a run resumed from a checkpoint goes on exactly as if it had never stopped: bit
 * for bit on a CPU with the same number of threads.
 */
public final class Trainer {
  private static final Logger LOG = LoggerFactory.getLogger(Trainer.class);
  private static final int SPEED_STEPS = 20;

  private final TrainConfig config;
  private final Learner learner;
  private final FlatParameters parameters;
  private final Batches train;
  private final Optional<Batches> eval;
  private final List<String> tasks;
  private final RunIdentity identity;
  private final Checkpoints checkpoints;
  private final Consumer<Path> export;
  private final Collective collective;
  private final List<TrainingListener> listeners;
  private final BooleanSupplier stop;

  /**
   * @param config settings
   * @param learner makes losses and gradients
   * @param parameters what is trained
   * @param train micro-batches to learn from
   * @param eval micro-batches held out, if any
   * @param tasks names by adapter index
   * @param identity what a resumed run must share
   * @param checkpoints where they are kept
   * @param export writes the model into a checkpoint's folder
   * @param collective the other processes
   * @param listeners watch; those of the first process are told
   * @param stop asked after every step; true: write a checkpoint and return
   */
  public Trainer(
      TrainConfig config,
      Learner learner,
      FlatParameters parameters,
      Batches train,
      Optional<Batches> eval,
      List<String> tasks,
      RunIdentity identity,
      Checkpoints checkpoints,
      Consumer<Path> export,
      Collective collective,
      List<TrainingListener> listeners,
      BooleanSupplier stop) {
    this.config = config;
    this.learner = learner;
    this.parameters = parameters;
    this.train = train;
    this.eval = eval;
    this.tasks = List.copyOf(tasks);
    this.checkpoints = checkpoints;
    this.export = export;
    this.collective = collective;
    this.listeners = collective.rank() == 0 ? List.copyOf(listeners) : List.of();
    this.stop = stop;
    this.identity = identity.with("processes", String.valueOf(collective.size()));
  }

  /**
   * Trains to the last step.
   *
   * @param resume a checkpoint to go on from
   * @return the steps made in all; fewer than planned when {@code stop} said so
   * @throws UserException when a loss or the gradient is not finite, naming step, batch and
   *     samples; parameters and checkpoints stay as they were before that step; or when {@code
   *     resume} is another run's, or lies beyond the last step
   */
  public long run(Optional<Path> resume) {
    long steps = config.steps(train.perEpoch(), collective.size());
    var schedule = CosineSchedule.of(config.learningRate(), config.warmupRatio(), steps);
    try (var optimizer = new AdamW(parameters, config.weightDecay())) {
      long step = resume.map(c -> restore(c, steps, optimizer)).orElse(0L);
      if (collective.rank() == 0) {
        checkpoints.removeAfter(step);
      }
      collective.broadcast(parameters.values());
      parameters.publish();
      long start = step;
      listeners.forEach(listener -> listener.onStart(start, steps));
      var speed = new Speed();
      boolean saved = true;
      boolean written = true;
      while (step < steps && !stop.getAsBoolean()) {
        long began = System.nanoTime();
        var batches = batchesOf(step);
        var losses = accumulateGradients(step, batches);
        collective.sum(parameters.gradients());
        double norm = optimizer.gradientNorm();
        if (!Double.isFinite(norm)) {
          throw notFinite(step, "the gradient's norm is " + norm, batches);
        }
        double rate = schedule.rate(step);
        optimizer.step(rate, AdamW.clipFactor(norm, config.maxGradNorm()));
        parameters.publish();
        step++;
        saved = false;
        speed.add(losses.tokens(), (System.nanoTime() - began) / 1e9);
        var report =
            new StepReport(
                step,
                steps,
                rate,
                norm,
                losses,
                speed.lastSeconds(),
                speed.tokensPerSecond(),
                padding(batches),
                MemoryUse.bytes(parameters.values().getDevice()),
                speed.secondsPerStep() * (steps - step));
        listeners.forEach(listener -> listener.onStep(report));
        if (step % config.evalSteps() == 0 || step == steps) {
          evaluate(step);
        }
        if (step % config.saveSteps() == 0 || step == steps) {
          written = save(step, steps, optimizer);
          saved = true;
        }
      }
      if (!saved) {
        written = save(step, steps, optimizer);
      }
      if (!written) {
        throw new UserException("training ended, but its last checkpoint could not be written");
      }
      return step;
    } finally {
      listeners.forEach(TrainingListener::onEnd);
    }
  }

  private long restore(Path checkpoint, long steps, AdamW optimizer) {
    var position = Checkpoints.restore(checkpoint, identity, parameters, optimizer);
    if (position.step() > steps) {
      throw new UserException(
          "cannot resume: "
              + checkpoint
              + " is at step "
              + position.step()
              + ", beyond the "
              + steps
              + (steps == 1 ? " step" : " steps")
              + " asked for");
    }
    if (position.steps() != steps) {
      LOG.info("schedule changes from {} to {} steps", position.steps(), steps);
    }
    return position.step();
  }

  /** The micro-batches of a step that belong to this process. */
  private List<Batch> batchesOf(long step) {
    var result = new ArrayList<Batch>();
    for (long i = 0; i < config.accumulation(); i++) {
      result.add(
          train.get((step * config.accumulation() + i) * collective.size() + collective.rank()));
    }
    return result;
  }

  private StepReport.Losses accumulateGradients(long step, List<Batch> batches) {
    var counts =
        collective.sum(
            new double[] {
              batches.stream().mapToLong(Batch::labelCount).sum(),
              batches.stream().mapToLong(Batch::gateLabelCount).sum()
            });
    double weight = 1 / Math.max(1, counts[0]);
    double gateWeight = config.gateLossWeight() / Math.max(1, counts[1]);
    var tally = new Tally();
    parameters.clearGradients();
    for (int i = 0; i < batches.size(); i++) {
      var batch = batches.get(i);
      long seed = Batches.mix(config.seed(), step, i, collective.rank());
      var sums = learner.learn(batch, weight, gateWeight, seed);
      if (!Double.isFinite(sums.languageModel()) || !Double.isFinite(sums.gate())) {
        throw notFinite(
            step,
            "the loss of micro-batch "
                + (i + 1)
                + " is not finite (language model "
                + sums.languageModel()
                + ", gates "
                + sums.gate()
                + ")",
            List.of(batch));
      }
      parameters.collectGradients();
      tally.add(batch, sums);
    }
    return tally.losses();
  }

  private UserException notFinite(long step, String what, List<Batch> batches) {
    return new UserException(
        "training stopped in step "
            + (step + 1)
            + ": "
            + what
            + "; samples "
            + batches.stream().map(Batch::sampleIds).reduce((a, b) -> a + ", " + b).orElse("none")
            + checkpoints.latest().map(path -> "; the checkpoint before it is " + path).orElse(""));
  }

  private static double padding(List<Batch> batches) {
    double positions = batches.stream().mapToLong(b -> (long) b.rows() * b.length()).sum();
    return 1 - batches.stream().mapToLong(Batch::tokens).sum() / positions;
  }

  private void evaluate(long step) {
    if (eval.isEmpty()) {
      return;
    }
    var tally = new Tally();
    long count = Math.min(eval.get().perEpoch(), config.evalBatches());
    for (long i = collective.rank(); i < count; i += collective.size()) {
      var batch = eval.get().get(i);
      tally.add(batch, learner.evaluate(batch));
    }
    var losses = tally.losses();
    listeners.forEach(listener -> listener.onEvaluation(step, losses));
  }

  /** A full disk does not end a run of days: the earlier checkpoints stay, the next may succeed. */
  private boolean save(long step, long steps, AdamW optimizer) {
    boolean written = true;
    if (collective.rank() == 0) {
      try {
        var path =
            checkpoints.save(
                new Checkpoints.State(step, steps, identity, config.describe()),
                parameters,
                optimizer,
                export);
        listeners.forEach(listener -> listener.onCheckpoint(step, path));
      } catch (UserException e) {
        LOG.error("{}", e.getMessage());
        written = false;
      }
    }
    collective.barrier();
    return written;
  }

  /** Sums of several batches, and of all processes. */
  private final class Tally {
    private static final int FIXED = 5;

    /** Then for each task: right, counted with each gate, dominated, counted once. */
    private static final int EACH = 4;

    /** lm, gate, gates, labels, tokens, then the tasks. */
    private final double[] sums = new double[FIXED + EACH * tasks.size()];

    void add(Batch batch, Learner.Sums s) {
      sums[0] += s.languageModel();
      sums[1] += s.gates() == 0 ? 0 : s.gate() / s.gates();
      sums[2] += s.gates() == 0 ? 0 : batch.gateLabelCount();
      sums[3] += batch.labelCount();
      sums[4] += batch.tokens();
      for (int row = 0; row < batch.rows() && s.gates() > 0; row++) {
        var sample = batch.samples().get(row);
        int at = FIXED + EACH * sample.task();
        double counted = sample.length() - 1.0;
        sums[at] += s.right()[row];
        sums[at + 1] += s.gates() * counted;
        sums[at + 2] += s.dominated()[row];
        sums[at + 3] += counted;
      }
    }

    StepReport.Losses losses() {
      var all = collective.sum(sums);
      double languageModel = all[0] / Math.max(1, all[3]);
      double gate = all[2] == 0 ? Double.NaN : all[1] / all[2];
      var total = new double[EACH];
      var byTask = new LinkedHashMap<String, Double>();
      var dominantByTask = new LinkedHashMap<String, Double>();
      for (int task = 0; task < tasks.size(); task++) {
        int at = FIXED + EACH * task;
        if (all[at + 1] > 0) {
          for (int i = 0; i < EACH; i++) {
            total[i] += all[at + i];
          }
          byTask.put(tasks.get(task), all[at] / all[at + 1]);
          dominantByTask.put(tasks.get(task), all[at + 2] / all[at + 3]);
        }
      }
      return new StepReport.Losses(
          languageModel,
          gate,
          Double.isNaN(gate) ? languageModel : languageModel + config.gateLossWeight() * gate,
          total[0] / total[1], // NaN without gates
          byTask,
          total[2] / total[3],
          dominantByTask,
          (long) all[4]);
    }
  }

  /** Tokens and seconds of the last steps. */
  private static final class Speed {
    private final ArrayDeque<double[]> last = new ArrayDeque<>();

    void add(double tokens, double seconds) {
      last.addLast(new double[] {tokens, seconds});
      if (last.size() > SPEED_STEPS) {
        last.removeFirst();
      }
    }

    double lastSeconds() {
      return last.getLast()[1];
    }

    double tokensPerSecond() {
      return sum(0) / Math.max(1e-9, sum(1));
    }

    double secondsPerStep() {
      return sum(1) / last.size();
    }

    private double sum(int column) {
      return last.stream().mapToDouble(entry -> entry[column]).sum();
    }
  }

  /** Memory in use, for people. */
  static final class MemoryUse {
    private MemoryUse() {}

    /** Of the GPU, or the process's resident memory; 0 when it cannot be told. */
    static long bytes(Device device) {
      try {
        if (device.isGpu()) {
          var memory = org.meteora.cuda.driver.Cuda.device(device.getDeviceId()).memory();
          return memory.total() - memory.free();
        }
        for (var line : java.nio.file.Files.readAllLines(Path.of("/proc/self/status"))) {
          if (line.startsWith("VmRSS:")) {
            return Long.parseLong(line.replaceAll("\\D", "")) << 10;
          }
        }
      } catch (java.io.IOException | RuntimeException | LinkageError e) {
        // not Linux, or no driver to ask
      }
      return 0;
    }
  }
}
