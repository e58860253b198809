package org.meteora.train;

import java.nio.file.Path;
import java.util.ArrayDeque;
import java.util.List;
import java.util.Optional;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;
import java.util.function.IntConsumer;
import java.util.stream.Collectors;
import java.util.stream.LongStream;
import org.meteora.UserException;
import org.meteora.backend.Backends;
import org.meteora.parallel.Collective;
import org.meteora.train.batch.Batch;
import org.meteora.train.batch.Batches;
import org.meteora.train.listener.Evaluation;
import org.meteora.train.listener.Part;
import org.meteora.train.listener.StepReport;
import org.meteora.train.listener.TrainingListener;
import org.meteora.train.optim.AdamW;
import org.meteora.train.optim.FlatParameters;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The training loop. A step takes {@code accumulation × processes} micro-batches from the stream;
 * losses are means over the labels of all of them, so that a step's gradient does not depend on how
 * its samples are cut into micro-batches.
 *
 * <p>Among several processes each learns from its micro-batches of the same stream and steps its
 * slice of the parameters. N processes with accumulation 1 make the steps of one with accumulation
 * N, within rounding; checkpoints know nothing of processes.
 *
 * <p>Everything a step does follows from the parameters, the optimiser's state, the step's number
 * and the seed. So a run resumed from a checkpoint goes on exactly as if it had never stopped: bit
 * for bit on a CPU with the same number of threads.
 *
 * @param begin the step whose parameters the part begins with; 0 in the first
 * @param tasks names by adapter index
 * @param identity what a resumed run must share
 * @param folder of the run: gets checkpoints, and the best model so far
 * @param export writes the model into a checkpoint's folder
 * @param listeners watch; those of the first process are told
 * @param stop asked after every step; true, in any process: write a checkpoint and return
 */
record Trainer(
    TrainConfig config,
    Part part,
    long begin,
    Learner learner,
    FlatParameters parameters,
    Batches train,
    HeldOut heldOut,
    List<String> tasks,
    RunIdentity identity,
    Path folder,
    Consumer<Path> export,
    Collective collective,
    List<TrainingListener> listeners,
    BooleanSupplier stop) {
  private static final Logger LOG = LoggerFactory.getLogger(Trainer.class);
  private static final int SPEED_STEPS = 20;

  Trainer {
    listeners = collective.rank() == 0 ? listeners : List.of();
    identity = // what makes a step the same on any number of processes
        identity.replaced(
            "gradient_accumulation_steps",
            "gradient_accumulation_steps × processes",
            String.valueOf((long) config.accumulation() * collective.size()));
  }

  /**
   * What a run came to.
   *
   * @param steps made in all; fewer than planned when it was stopped
   * @param kept the step whose parameters the model has now
   * @param evaluation of these, when another part may follow; else empty
   */
  record Outcome(long steps, long kept, Optional<Evaluation> evaluation) {}

  /**
   * Trains to the last step. Then the model has the parameters of the best evaluation, or with
   * {@code keep: last} those of the last step.
   *
   * @param resume a checkpoint to go on from
   * @throws UserException when a loss or the gradient is not finite, naming step, batch and
   *     samples; parameters and checkpoints stay as they were before that step; or when {@code
   *     resume} is another run's, or lies beyond the last step
   */
  Outcome run(Optional<Path> resume) {
    long steps = part.end();
    var update = new Update(config, parameters, part);
    var best = new BestModel(folder, part, parameters);
    if (config.gated() && !heldOut.isEmpty()) {
      heldOut.measureReferences();
    }
    try (var optimizer = new AdamW(parameters, config.weightDecay())) {
      long step = resume.map(c -> restore(c, steps, optimizer)).orElse(part.before());
      if (collective.rank() == 0) {
        checkpoints().removeAfter(step);
        best.resume(resume.isPresent() ? step : 0);
      }
      parameters.broadcast();
      long start = step;
      listeners.forEach(listener -> listener.onStart(start, steps));
      if (resume.isEmpty()) {
        if (part.before() > 0) {
          listeners.forEach(listener -> listener.onPart(part, begin));
        }
        evaluate(step, begin, best);
      }
      var speed = new Speed();
      long saved = step;
      boolean written = true;
      while (step < steps) {
        long began = System.nanoTime();
        var batches = batchesOf(step);
        var counts = counts(batches);
        if (counts.stop()) {
          break;
        }
        var losses = accumulateGradients(step, batches, counts);
        parameters.reduce();
        double norm = update.norm(optimizer);
        if (!Double.isFinite(norm)) {
          throw notFinite(step, "the gradient's norm is " + norm, batches);
        }
        update.apply(optimizer, step, norm);
        parameters.publish();
        step++;
        double seconds = (System.nanoTime() - began) / 1e9;
        speed.add(losses.tokens(), seconds);
        var report =
            new StepReport(
                step,
                update.rate(step - 1),
                norm,
                losses,
                seconds,
                speed.tokensPerSecond(),
                padding(batches),
                Backends.memoryInUse(parameters.values().getDevice()));
        listeners.forEach(listener -> listener.onStep(report));
        if (step % config.evalSteps() == 0 || step == steps) {
          evaluate(step, step, best);
        }
        if (step % config.saveSteps() == 0 || step == steps) {
          written = save(step, optimizer);
          saved = step;
        }
      }
      if (saved != step) {
        written = save(step, optimizer);
      }
      if (!written) {
        throw new UserException("training ended, but its last checkpoint could not be written");
      }
      if (step < steps) {
        return new Outcome(step, step, Optional.empty());
      }
      boolean mayGoOn = config.mayGoOn(part) && !heldOut.isEmpty();
      return new Outcome(
          step, keep(step, best), mayGoOn ? Optional.of(heldOut.evaluate()) : Optional.empty());
    } finally {
      listeners.forEach(TrainingListener::onEnd);
    }
  }

  private Checkpoints checkpoints() {
    return new Checkpoints(folder, config.saveTotalLimit());
  }

  /** Puts the best evaluation's parameters into the model, if they are to be kept. */
  private long keep(long step, BestModel best) {
    var kept = collective.sum(new double[] {config.keepBest() ? best.step() : 0});
    if (kept[0] == 0 || kept[0] == step) {
      return step;
    }
    if (collective.rank() == 0) {
      best.restore();
    }
    parameters.broadcast();
    LOG.info(
        "the result is step {}'s, whose answer loss was the lowest; --keep last takes the last",
        (long) kept[0]);
    return (long) kept[0];
  }

  private long restore(Path checkpoint, long steps, AdamW optimizer) {
    var position = Checkpoints.restore(checkpoint, identity, parameters, optimizer);
    if (position.step() > steps) {
      throw new UserException(
          "cannot resume: %s is at step %s, beyond the %s%s asked for"
              .formatted(checkpoint, position.step(), steps, steps == 1 ? " step" : " steps"));
    }
    if (position.steps() != steps) {
      LOG.info("schedule changes from {} to {} steps", position.steps(), steps);
    }
    return position.step();
  }

  /** The micro-batches of a step that belong to this process. */
  private List<Batch> batchesOf(long step) {
    long first = step * config.accumulation();
    return LongStream.range(first, first + config.accumulation())
        .mapToObj(i -> train.get(i * collective.size() + collective.rank()))
        .toList();
  }

  /** What all processes must know before a step: its labels, and whether one is to stop. */
  private record Counts(double labels, double gateLabels, boolean stop) {}

  private Counts counts(List<Batch> batches) {
    var sums =
        collective.sum(
            new double[] {
              batches.stream().mapToLong(Batch::labelCount).sum(),
              batches.stream().mapToLong(Batch::gateLabelCount).sum(),
              stop.getAsBoolean() ? 1 : 0
            });
    return new Counts(sums[0], sums[1], sums[2] > 0);
  }

  private StepReport.Losses accumulateGradients(long step, List<Batch> batches, Counts counts) {
    double weight = 1 / Math.max(1, counts.labels());
    double gateWeight = part.gateLossWeight() / Math.max(1, counts.gateLabels());
    var tally = new Tally(config, part.gateLossWeight(), tasks, collective);
    parameters.clearGradients();
    for (int i = 0; i < batches.size(); i++) {
      var batch = batches.get(i);
      // the micro-batch's number in the step, whichever process has it
      long number = (long) i * collective.size() + collective.rank();
      long seed = Batches.mix(config.seed(), step, number);
      boolean last = i == batches.size() - 1;
      IntConsumer done = last ? parameters::reduceLayer : layer -> {};
      var sums = learner.learn(batch, weight, gateWeight, seed, done);
      if (!Double.isFinite(sums.languageModel()) || !Double.isFinite(sums.gate())) {
        throw notFinite(
            step,
            "the loss of micro-batch %s is not finite (language model %s, gates %s)"
                .formatted(i + 1, sums.languageModel(), sums.gate()),
            List.of(batch));
      }
      parameters.collectGradients();
      tally.add(batch, sums);
    }
    return tally.losses();
  }

  private UserException notFinite(long step, String what, List<Batch> batches) {
    var samples = batches.stream().map(Batch::sampleIds).collect(Collectors.joining(", "));
    var before = checkpoints().latest().map(path -> "; the checkpoint before it is " + path);
    return new UserException(
        "training stopped in step %s: %s; samples %s%s"
            .formatted(step + 1, what, samples, before.orElse("")));
  }

  private static double padding(List<Batch> batches) {
    double positions = batches.stream().mapToLong(b -> (long) b.rows() * b.length()).sum();
    return 1 - batches.stream().mapToLong(Batch::tokens).sum() / positions;
  }

  /**
   * @param madeBy the step that made the parameters; 0: they are not a run's yet
   */
  private void evaluate(long step, long madeBy, BestModel best) {
    if (heldOut.isEmpty()) {
      return;
    }
    var evaluation = heldOut.evaluate();
    listeners.forEach(listener -> listener.onEvaluation(step, evaluation));
    if (config.keepBest() && madeBy > 0 && ofFirst(best.isBetter(evaluation.answerLoss()))) {
      try (var scope = parameters.manager().newSubManager()) {
        parameters
            .gather(scope, parameters.masters())
            .ifPresent(values -> best.keep(madeBy, evaluation.answerLoss(), values));
      }
    }
  }

  /** What the first process says, at all. */
  private boolean ofFirst(boolean mine) {
    return collective.sum(new double[] {collective.rank() == 0 && mine ? 1 : 0})[0] > 0;
  }

  /** A full disk does not end a run of days: the earlier checkpoints stay, the next may succeed. */
  private boolean save(long step, AdamW optimizer) {
    boolean written = true;
    try (var scope = parameters.manager().newSubManager()) {
      var trained = Checkpoints.Trained.of(scope, parameters, optimizer);
      if (trained.isPresent()) {
        var state = new Checkpoints.State(step, part, identity, config.describe());
        var path = checkpoints().save(state, trained.get(), export);
        listeners.forEach(listener -> listener.onCheckpoint(step, path));
      }
    } catch (UserException e) {
      LOG.error("{}", e.getMessage());
      written = false;
    }
    return ofFirst(written);
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

    double tokensPerSecond() {
      double tokens = last.stream().mapToDouble(each -> each[0]).sum();
      return tokens / Math.max(1e-9, last.stream().mapToDouble(each -> each[1]).sum());
    }
  }
}
