package org.meteora.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatCode;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import ai.djl.Device;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.meteora.TooLittleMemory;
import org.meteora.backend.Backends;
import org.meteora.io.HostMemory;
import org.meteora.io.Jsonl;
import org.meteora.lora.AdapterBank;
import org.meteora.model.llama.LlamaConfig;
import org.meteora.moe.GatedLinear;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;

class MemoryNeedTest {
  private static final Architecture CONFIG =
      LlamaConfig.parse(
          Jsonl.JSON
              .createObjectNode()
              .put("vocab_size", 70)
              .put("hidden_size", 32)
              .put("intermediate_size", 48)
              .put("num_hidden_layers", 3)
              .put("num_attention_heads", 4)
              .put("num_key_value_heads", 2),
          "test");

  /** The numbers in a model that is there. */
  @Test
  void countsWhatAModelHas() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama =
          RandomLlama.create(CONFIG, manager, Dtype.F32, 5, 4, Backends.of(manager, Dtype.F32), 0);
      var linears = llama.layers().stream().flatMap(layer -> layer.projections().stream()).toList();
      long weights =
          llama.embedding().size()
              + llama.head().size()
              + llama.norm().weight().size()
              + llama.layers().stream()
                  .mapToLong(
                      l -> l.inputNorm().weight().size() + l.postAttentionNorm().weight().size())
                  .sum()
              + linears.stream().mapToLong(linear -> linear.weight().size()).sum();
      assertThat(MemoryNeed.parameters(CONFIG)).isEqualTo(weights);
      long adapters =
          linears.stream()
              .map(GatedLinear::bank)
              .flatMap(MemoryNeedTest::arrays)
              .mapToLong(Long::longValue)
              .sum();
      assertThat(MemoryNeed.adapterParameters(CONFIG, 5, 4)).isEqualTo(adapters);
      try (var cache = llama.newCache(manager, new int[] {0, 1}, 40)) {
        long held = 0;
        for (int layer = 0; layer < 3; layer++) {
          held += 4 * (cache.layer(layer).keys().size() + cache.layer(layer).values().size());
        }
        assertThat(MemoryNeed.cacheBytes(CONFIG, Dtype.F32, 2, cache.capacity())).isEqualTo(held);
      }
    }
  }

  private static Stream<Long> arrays(AdapterBank bank) {
    return List.of(bank.gate(), bank.loraA(), bank.loraB()).stream().map(each -> each.size());
  }

  @Test
  void saysWhatIsNeededAndWhatIsFree() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var backend = Backends.of(manager, Dtype.F32);
      long free = HostMemory.available();
      var need = MemoryNeed.NONE.and("weights", 100 << 20).and("nothing", 0);
      assertThatCode(() -> need.require(backend)).doesNotThrowAnyException();
      assertThatThrownBy(() -> need.and("a cache of 4 x 100 tokens", 2 * free).require(backend))
          .isInstanceOf(TooLittleMemory.class)
          .hasMessageMatching(
              "this machine has too little memory: [\\d,]+ MiB are needed \\(weights 101 MiB, a"
                  + " cache of 4 x 100 tokens [\\d,]+ MiB\\), [\\d,]+ MiB are free");
    }
  }

  @Test
  void trainingKeepsLessWhenLayersAreComputedAgain() {
    long kept = MemoryNeed.activationBytes(CONFIG, Dtype.BF16, 3, 1000, false);
    long again = MemoryNeed.activationBytes(CONFIG, Dtype.BF16, 3, 1000, true);
    assertThat(again).isLessThan(kept).isGreaterThan(3 * 1000 * 32 * 2);
    // layers before the first adapter keep nothing
    assertThat(MemoryNeed.activationBytes(CONFIG, Dtype.BF16, 1, 1000, true))
        .isEqualTo(again - 2 * 1000 * 32 * 2);
  }

  /** Whoever reports it: this software, libtorch on a host or a GPU, or a driver. */
  @Test
  void aLackOfMemoryIsKnown() {
    assertThat(TooLittleMemory.isReportedBy(new TooLittleMemory("12 MiB are needed"))).isTrue();
    assertThat(TooLittleMemory.isReportedBy(new RuntimeException("CUDA out of memory"))).isTrue();
    assertThat(TooLittleMemory.isReportedBy(new RuntimeException("can't allocate memory")))
        .isTrue();
    assertThat(TooLittleMemory.isReportedBy(new RuntimeException())).isFalse();
  }
}
