package org.meteora.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import ai.djl.Device;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.meteora.UserException;
import org.meteora.io.Jsonl;
import org.meteora.model.KvCache;
import org.meteora.model.llama.LlamaConfig;
import org.meteora.moe.RoutingSettings;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;

/** What docs/library.md shows. */
class LibraryTest {
  private static final Path TINY =
      Path.of(System.getProperty("meteora.root", "..")).resolve("configs/tiny");

  @Test
  void aProgramLoadsAModelAndGenerates() {
    var spec = LoadedModel.Spec.meteora(TINY.resolve("base"), TINY.resolve("meteora"));
    try (var model = LoadedModel.load(spec)) {
      var config = model.generationConfig().withGreedy().withMaxNewTokens(8);
      var answer = model.answer("a question", config);

      var prompt = List.of(model.tokenizer().encode("a question", true));
      var gates = new ArrayList<Integer>();
      var tokens = new ArrayList<Integer>();
      var generator =
          model
              .generator()
              .withRouting(new RoutingSettings(2, 1))
              .listenedBy(
                  (layer, module, rows, count, k, adapters, weights) -> gates.add(adapters[0]));
      var answers = generator.generate(prompt, config, (row, token) -> tokens.add(token));
      assertThat(tokens).hasSize(answers.getFirst().length);
      assertThat(gates).isNotEmpty();
      assertThat(model.tokenizer().decode(answers.getFirst(), true)).isEqualTo(answer);
    }
  }

  @Test
  void aCacheThatCannotGrowIsTooLittleMemory() {
    var json =
        Jsonl.JSON
            .createObjectNode()
            .put("vocab_size", 2)
            .put("hidden_size", 2)
            .put("intermediate_size", 2)
            .put("num_hidden_layers", 1)
            .put("num_attention_heads", 1 << 14)
            .put("head_dim", 1 << 14);
    var config = LlamaConfig.parse(json, "test");
    try (var manager = Devices.newManager(Device.cpu())) {
      assertThatThrownBy(() -> new KvCache(config, manager, Dtype.F32, new int[1], 1 << 20))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("too little memory for the keys and values of 1 sequences");
    }
  }
}
