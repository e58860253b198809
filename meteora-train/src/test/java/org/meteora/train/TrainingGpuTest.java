package org.meteora.train;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.meteora.model.LlamaTraining.Recompute;
import org.meteora.moe.ForwardMode;
import org.meteora.train.batch.Batch;
import org.meteora.train.batch.TrainingSample;
import org.meteora.train.listener.Part;
import org.meteora.train.optim.AdamW;
import org.meteora.train.optim.FlatParameters;

/** Training steps on a GPU against PyTorch's, and a short run in bfloat16. */
@Tag("gpu")
class TrainingGpuTest {
  @BeforeEach
  void needsFixtures() {
    Fixtures.require();
  }

  /** In AUTO by the backend's own passes, in the others recorded by libtorch. */
  @ParameterizedTest(name = "{0} {1}, recomputed {2}")
  @CsvSource({
    "AUTO, f32, ALL, 1e-4",
    "AUTO, f32, NONE, 1e-4",
    "AUTO, f32, AUTO, 1e-4",
    "MASKED, f32, ALL, 1e-4",
    "MASKED, f32, NONE, 1e-4",
    "GATHER, f32, ALL, 1e-4",
    "ALL, f32, ALL, 1e-4",
    "REFERENCE, f32, ALL, 1e-4",
    "AUTO, bf16, ALL, 0.05",
    "AUTO, bf16, NONE, 0.05",
    "REFERENCE, bf16, ALL, 0.05"
  })
  void agreesWithTheReference(
      ForwardMode mode, String dtype, Recompute recompute, double tolerance) {
    var expected = Fixtures.expected();
    var samples = Fixtures.samples(expected);
    try (var model = Fixtures.meteoraOnGpu(dtype);
        var parameters = new FlatParameters(model.llama().manager(), model.parameters(false));
        var optimizer = new AdamW(parameters, 0.01)) {
      var context = model.context().withMode(mode);
      var learner = LlamaLearner.of(model.llama(), context, recompute, 4, parameters);
      assertThat(learner.ownPasses().isPresent()).isEqualTo(mode == ForwardMode.AUTO);
      var losses = learn(learner, parameters, samples);
      close(losses[0], expected.get("lm_loss").asDouble(), tolerance, "language model");
      close(losses[1], expected.get("gate_loss").asDouble(), tolerance, "gates");
      double norm = optimizer.gradientNorm();
      close(norm, expected.get("total_grad_norm").asDouble(), tolerance, "gradient");
      for (var module : expected.get("grad_norm").properties()) {
        for (var part : module.getValue().properties()) {
          var name = module.getKey() + "." + part.getKey();
          close(
              Tiny.gradient(parameters, name).norm().getFloat(),
              part.getValue().asDouble(),
              5 * tolerance,
              name);
        }
      }
      optimizer.step(5e-4, AdamW.clipFactor(norm, 0.3));
      parameters.publish();
      var after = learn(learner, parameters, samples);
      close(after[0], expected.get("lm_loss_after_step").asDouble(), tolerance, "after");
      close(after[1], expected.get("gate_loss_after_step").asDouble(), tolerance, "gates after");
    }
  }

  private static void close(double value, double expected, double tolerance, String what) {
    assertThat(Math.abs(value - expected) / Math.abs(expected))
        .as("%s: %s, expected %s", what, value, expected)
        .isLessThan(tolerance);
  }

  private static double[] learn(
      LlamaLearner learner, FlatParameters parameters, List<TrainingSample> samples) {
    var batch = new Batch(samples, false);
    double count = batch.labelCount();
    parameters.clearGradients();
    var sums = learner.learn(batch, 1 / count, 50 / count, 1, layer -> {});
    parameters.collectGradients();
    return new double[] {sums.languageModel() / count, sums.gate() / sums.gates() / count};
  }

  @Test
  void lossFallsAndACheckpointResumes(@TempDir Path folder) {
    var samples = Fixtures.samples(Fixtures.expected());
    try (var model = Fixtures.meteoraOnGpu("bf16");
        var parameters = new FlatParameters(model.llama().manager(), model.parameters(false));
        var optimizer = new AdamW(parameters, 0.01)) {
      var learner = LlamaLearner.of(model.llama(), model.context(), Recompute.AUTO, 4, parameters);
      var losses = new ArrayList<Double>();
      for (int i = 0; i < 12; i++) {
        losses.add(step(learner, parameters, optimizer, samples));
      }
      assertThat(losses.getLast()).as("%s", losses).isLessThan(losses.getFirst() * 0.98);
      var identity = new RunIdentity(Map.of("run", "gpu"), Map.of());
      var saved =
          new Checkpoints(folder, 1)
              .save(
                  new Checkpoints.State(12, new Part(0, 12, 1e-3, 1e-3, 0), identity, Map.of()),
                  Checkpoints.Trained.of(model.llama().manager(), parameters, optimizer)
                      .orElseThrow(),
                  path -> {});
      double next = step(learner, parameters, optimizer, samples);
      double afterNext = step(learner, parameters, optimizer, samples);
      assertThat(Checkpoints.restore(saved, identity, parameters, optimizer).step()).isEqualTo(12);
      parameters.publish();
      close(step(learner, parameters, optimizer, samples), next, 1e-3, "resumed");
      close(step(learner, parameters, optimizer, samples), afterNext, 1e-3, "resumed, next");
      System.err.println("losses in bf16: " + losses);
    }
  }

  /** Batches of all sizes, over and over: what is in use after 200 steps was in use after 50. */
  @Test
  void memoryStaysFlat() {
    var samples = Fixtures.samples(Fixtures.expected());
    var cuda = org.meteora.cuda.driver.Cuda.device(0);
    try (var model = Fixtures.meteoraOnGpu("bf16");
        var parameters = new FlatParameters(model.llama().manager(), model.parameters(false));
        var optimizer = new AdamW(parameters, 0.01)) {
      var learner = LlamaLearner.of(model.llama(), model.context(), Recompute.AUTO, 4, parameters);
      long used = 0;
      for (int i = 0; i < 200; i++) {
        step(learner, parameters, optimizer, samples.subList(0, 1 + i % samples.size()));
        learner.evaluate(new Batch(samples, false));
        if (i == 50) {
          used = cuda.memory().total() - cuda.memory().free();
        }
      }
      long more = cuda.memory().total() - cuda.memory().free() - used;
      assertThat(more).as("bytes more").isLessThanOrEqualTo(4L << 20);
    }
  }

  /** Dropout of the same seed drops the same, in both passes over a layer. */
  @Test
  void recomputationDropsWhatTheForwardPassDid() {
    var samples = Fixtures.samples(Fixtures.expected());
    var all = new ArrayList<float[]>();
    for (var recompute : List.of(Recompute.ALL, Recompute.NONE)) {
      try (var model = Fixtures.meteoraOnGpu("f32", 0.3);
          var parameters = new FlatParameters(model.llama().manager(), model.parameters(false))) {
        var learner = LlamaLearner.of(model.llama(), model.context(), recompute, 4, parameters);
        learn(learner, parameters, samples);
        all.add(parameters.gradients().toFloatArray());
      }
    }
    double difference = 0;
    double size = 0;
    for (int i = 0; i < all.get(0).length; i++) {
      difference += Math.pow(all.get(0)[i] - all.get(1)[i], 2);
      size += Math.pow(all.get(0)[i], 2);
    }
    assertThat(Math.sqrt(difference / size)).isLessThan(1e-5);
  }

  private static double step(
      LlamaLearner learner,
      FlatParameters parameters,
      AdamW optimizer,
      List<TrainingSample> samples) {
    var losses = learn(learner, parameters, samples);
    optimizer.step(2e-3, AdamW.clipFactor(optimizer.gradientNorm(), 1));
    parameters.publish();
    return losses[0] + 50 * losses[1];
  }
}
