package org.meteora.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.offset;

import java.nio.file.Path;
import java.util.Arrays;
import java.util.Optional;
import java.util.stream.IntStream;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.meteora.checkpoint.LoadedModel;
import org.meteora.moe.Flags;
import org.meteora.router.Routers;
import org.meteora.safetensors.SafetensorsFile;
import org.meteora.tensor.Ops;

/**
 * Adapters that {@code train-lora} wrote, loaded by Python's PEFT 0.21.0: {@code
 * scripts/check_peft.py} made the logits in {@code peft/logits.safetensors}. {@code plain} has all
 * seven projections, rank 2; {@code some} has {@code layers_to_transform}, three projections, rank
 * 4 and rsLoRA.
 */
class PeftTest {
  private static final Path PEFT = Path.of("src/test/resources/peft");

  @ParameterizedTest
  @ValueSource(strings = {"base", "plain", "some"})
  void pythonComputesTheSameLogits(String name) {
    Fixtures.require();
    var spec =
        new LoadedModel.Spec(
            Fixtures.TINY.resolve("base"),
            name,
            Optional.empty(),
            Optional.of(PEFT),
            Optional.empty(),
            Optional.empty(),
            "cpu",
            Optional.of("f32"),
            Flags.AUTO,
            Routers.GATE);
    try (var model = LoadedModel.load(spec);
        var manager = model.llama().manager().newSubManager();
        var file = SafetensorsFile.open(PEFT.resolve("logits.safetensors"))) {
      int vocab = model.llama().config().vocabSize();
      var expected = file.read(manager, name).toFloatArray();
      var ids = IntStream.range(0, 32).mapToLong(i -> (7L * i + 3) % vocab).toArray();
      for (int length = 1; length <= 32; length++) {
        try (var step = manager.newSubManager();
            var cache = model.llama().newCache(step, new int[1], length)) {
          var prefix = step.create(Arrays.copyOf(ids, length), Ops.shape(1, length));
          var logits =
              model.llama().next(prefix, cache, model.generator().context()).toFloatArray();
          for (int i = 0; i < vocab; i++) {
            assertThat(logits[i]).isCloseTo(expected[(length - 1) * vocab + i], offset(1e-4f));
          }
        }
      }
    }
  }
}
