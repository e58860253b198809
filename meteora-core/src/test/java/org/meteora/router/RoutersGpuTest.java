package org.meteora.router;

import static org.assertj.core.api.Assertions.assertThat;

import ai.djl.Device;
import java.util.List;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.meteora.Fixtures;
import org.meteora.backend.cuda.CudaDecoder;
import org.meteora.checkpoint.LoadedModel;

/** The routers on a GPU in float32: as PEFT has it, or as the CPU. */
@Tag("gpu")
class RoutersGpuTest {
  @ParameterizedTest
  @CsvSource({"1, 1", "2, 1", "2, 4", "3, 1"})
  void arrowIsPefts(int k, double t) {
    RoutersTest.arrowAgreesWithPeft("cuda", k, t);
  }

  @ParameterizedTest
  @ValueSource(strings = {"spectr", "uniform"})
  void logitsAreTheCpus(String router) {
    var prompts = Fixtures.prompts();
    try (var cpu = RoutersTest.tiny("cpu", router, 2, 1.5);
        var gpu = RoutersTest.tiny("cuda", router, 2, 1.5)) {
      var expected = RoutersTest.logits(cpu.llama(), cpu.generator().context(), prompts, 1000);
      for (int piece : new int[] {1000, 1}) {
        var actual = RoutersTest.logits(gpu.llama(), gpu.generator().context(), prompts, piece);
        assertThat(RoutersTest.worst(actual, expected)).isLessThan(1e-4);
      }
      assertThat(CudaDecoder.refusal(gpu.llama(), 1, gpu.generator().context()).orElseThrow())
          .contains("the router " + router);
    }
  }

  private static List<int[]> answers(LoadedModel model) {
    var config =
        model.generationConfig().withGreedy().withNoRepeatNgramSize(3).withMaxNewTokens(24);
    return model.generator().generate(Fixtures.prompts(), config);
  }

  @Test
  void logoContinuesAsOnTheCpu() {
    try (var cpu = RoutersTest.tiny("cpu", "logo", 2, 1);
        var gpu = RoutersTest.tiny("cuda", "logo", 2, 1)) {
      assertThat(gpu.llama().manager().getDevice()).isNotEqualTo(Device.cpu());
      var expected = answers(cpu);
      var actual = answers(gpu);
      for (int row = 0; row < expected.size(); row++) {
        assertThat(actual.get(row)).isEqualTo(expected.get(row));
      }
    }
  }
}
