package org.meteora.cli;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.Arrays;
import java.util.Map;
import org.meteora.cuda.driver.Cuda;
import org.meteora.parallel.Collective;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;
import org.meteora.train.LlamaLearner;
import org.meteora.train.batch.Batch;
import org.meteora.train.optim.AdamW;
import org.meteora.train.optim.FlatParameters;

/**
 * A training step of one process, then that of all, each on a batch of the same size: weak scaling.
 * All processes make the same number of steps.
 */
final class BenchProcesses {
  private static final int WARM_UP = 3;

  private final BenchModel options;
  private final Collective all;
  private final NDManager manager;
  private final LlamaLearner learner;
  private final Map<String, NDArray> tensors;
  private final Batch batch;

  BenchProcesses(
      BenchModel options,
      Collective all,
      NDManager manager,
      LlamaLearner learner,
      Map<String, NDArray> tensors,
      Batch batch) {
    this.options = options;
    this.all = all;
    this.manager = manager;
    this.learner = learner;
    this.tensors = tensors;
    this.batch = batch;
  }

  void run() {
    // the first process by itself; the others wait
    double alone = all.rank() == 0 ? steps(Collective.single()) : 0;
    alone = all.sum(new double[] {alone})[0];
    double tokens = batch.tokens();
    options.report("one process", alone, alone, tokens);
    try (var parameters = new FlatParameters(manager, tensors, all);
        var optimizer = new AdamW(parameters, 0)) {
      double step = median(() -> step(parameters, optimizer));
      options.report(all.size() + " processes", step, alone, tokens * all.size());
      double moving =
          median(
              () -> {
                parameters.reduce();
                parameters.publish();
              });
      options.report(
          "of it reduce and gather, %d MiB".formatted(parameters.size() * Float.BYTES >> 20),
          moving,
          step,
          tokens * all.size());
      System.out.printf("weak scaling %.1f %%%n", 100 * alone / step);
      var device = manager.getDevice();
      long used = device.isGpu() ? GpuMeasure.usedBytes(Cuda.device(device.getDeviceId())) : 0;
      used = (long) Arrays.stream(all.sum(own(used))).max().orElse(0);
      options.reportMemory("memory, the fullest process", used);
    }
  }

  private double[] own(double value) {
    var result = new double[all.size()];
    result[all.rank()] = value;
    return result;
  }

  private double steps(Collective collective) {
    try (var parameters = new FlatParameters(manager, tensors, collective);
        var optimizer = new AdamW(parameters, 0)) {
      return median(() -> step(parameters, optimizer));
    }
  }

  private void step(FlatParameters parameters, AdamW optimizer) {
    parameters.clearGradients();
    learner.learn(
        batch,
        1.0 / batch.labelCount(),
        BenchTrainCommand.GATE_LOSS_WEIGHT / batch.gateLabelCount(),
        1);
    parameters.collectGradients();
    parameters.reduce();
    double norm = optimizer.gradientNorm();
    norm = Math.sqrt(parameters.sum(norm * norm));
    optimizer.step(BenchTrainCommand.RATE, AdamW.clipFactor(norm, 1));
    parameters.publish();
  }

  /** Of as many runs in every process. */
  private double median(Runnable run) {
    var times = new double[options.repeat.value()];
    for (int i = -WARM_UP; i < times.length; i++) {
      awaitDevice();
      long start = System.nanoTime();
      run.run();
      awaitDevice();
      if (i >= 0) {
        times[i] = (System.nanoTime() - start) / 1e6;
      }
    }
    Arrays.sort(times);
    return times[times.length / 2];
  }

  private void awaitDevice() {
    await(tensors.values().iterator().next());
  }

  /** Reads a number, and so waits for all that was queued before. */
  static void await(NDArray array) {
    try (var scope = array.getManager().newSubManager();
        var off = Ops.notRecording()) {
      var first = Ops.narrow(Ops.alias(scope, array).reshape(-1), 0, 0, 1);
      Ops.cast(first, Dtype.F32).toFloatArray();
    }
  }
}
