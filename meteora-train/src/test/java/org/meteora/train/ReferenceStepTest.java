package org.meteora.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import java.util.List;
import java.util.Optional;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.meteora.model.LlamaTraining.Recompute;
import org.meteora.moe.ForwardMode;
import org.meteora.safetensors.SafetensorsFile;
import org.meteora.train.batch.Batch;
import org.meteora.train.batch.TrainingSample;
import org.meteora.train.optim.AdamW;
import org.meteora.train.optim.FlatParameters;

/** One training step against PyTorch's, in every forward mode. */
class ReferenceStepTest {
  private record Losses(double languageModel, double gate) {}

  @BeforeEach
  void needsFixtures() {
    Fixtures.require();
  }

  static Stream<Arguments> ways() {
    return Stream.of(ForwardMode.values())
        .flatMap(
            mode ->
                Stream.of(
                    Arguments.of(mode, true, 4, 8192),
                    Arguments.of(mode, false, 4, 16),
                    Arguments.of(mode, true, 1, 50)));
  }

  @ParameterizedTest(name = "{0}, checkpointing {1}, rows at once {2}, loss chunk {3}")
  @MethodSource("ways")
  void agrees(ForwardMode mode, boolean checkpointing, int rows, int chunk) {
    var expected = Fixtures.expected();
    var samples = Fixtures.samples(expected);
    try (var model = Fixtures.meteora();
        var parameters = new FlatParameters(model.llama().manager(), model.parameters(false));
        var optimizer = new AdamW(parameters, 0.01)) {
      var context = model.context().withMode(mode);
      var learner =
          new LlamaLearner(
              model.llama(),
              context,
              checkpointing ? Recompute.ALL : Recompute.NONE,
              Optional.empty(),
              4,
              chunk);
      var losses = accumulate(learner, parameters, samples, rows);
      assertThat(losses.languageModel())
          .isCloseTo(expected.get("lm_loss").asDouble(), relative(1e-5, 6.4));
      assertThat(losses.gate())
          .isCloseTo(expected.get("gate_loss").asDouble(), relative(1e-5, 1.6));
      assertThat(losses.languageModel() + 50 * losses.gate())
          .isCloseTo(expected.get("loss").asDouble(), relative(1e-5, 87));
      int checked = 0;
      for (var module : expected.get("grad_norm").properties()) {
        for (var part : module.getValue().properties()) {
          var name = module.getKey() + "." + part.getKey();
          double norm = Tiny.gradient(parameters, name).norm().getFloat();
          assertThat(norm)
              .as(name)
              .isCloseTo(part.getValue().asDouble(), relative(1e-4, part.getValue().asDouble()));
          checked++;
        }
      }
      assertThat(checked).isEqualTo(parameters.slots().size()).isEqualTo(42);
      double norm = optimizer.gradientNorm();
      double total = expected.get("total_grad_norm").asDouble();
      assertThat(norm).isCloseTo(total, relative(1e-4, total));
      double clip = AdamW.clipFactor(norm, 0.3);
      compareStored(parameters, clip);
      optimizer.step(5e-4, clip);
      parameters.publish();
      var after = accumulate(learner, parameters, samples, rows);
      assertThat(after.languageModel())
          .isCloseTo(expected.get("lm_loss_after_step").asDouble(), relative(1e-5, 6.4));
      assertThat(after.gate())
          .isCloseTo(expected.get("gate_loss_after_step").asDouble(), relative(1e-5, 1.5));
    }
  }

  private static org.assertj.core.data.Offset<Double> relative(double tolerance, double scale) {
    return within(tolerance * scale);
  }

  private static Losses accumulate(
      LlamaLearner learner, FlatParameters parameters, List<TrainingSample> samples, int rows) {
    double count = new Batch(samples, false).labelCount();
    parameters.clearGradients();
    double lm = 0;
    double gate = 0;
    for (int i = 0; i < samples.size(); i += rows) {
      var batch = new Batch(samples.subList(i, i + rows), false);
      var sums = learner.learn(batch, 1 / count, 50 / count, 1, layer -> {});
      parameters.collectGradients();
      lm += sums.languageModel();
      gate += sums.gate() / sums.gates();
    }
    return new Losses(lm / count, gate / count);
  }

  /**
   * Of the stored gradients, those of A and B were taken before clipping, those of the gates after.
   */
  private static void compareStored(FlatParameters parameters, double clip) {
    try (var file = SafetensorsFile.open(Fixtures.TINY.resolve("expected.safetensors"));
        var scope = parameters.manager().newSubManager()) {
      int compared = 0;
      for (var name : file.tensors().keySet()) {
        if (name.startsWith("grad.")) {
          var expected = file.read(scope, name);
          double factor = name.endsWith(".moe_gate") ? clip : 1;
          var difference = Tiny.gradient(parameters, name.substring(5)).mul(factor).sub(expected);
          assertThat(difference.norm().getFloat() / expected.norm().getFloat())
              .as(name)
              .isLessThan(1e-4f);
          compared++;
        }
      }
      assertThat(compared).isEqualTo(6);
    }
  }
}
