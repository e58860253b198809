package org.meteora.model;

import static org.assertj.core.api.Assertions.assertThat;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.junit.jupiter.api.Test;
import org.meteora.backend.Backends;
import org.meteora.io.Jsonl;
import org.meteora.model.llama.LlamaConfig;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.RoutingSettings;
import org.meteora.nn.Projection;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

class ArchitectureTest {
  private static final ForwardContext CONTEXT =
      ForwardContext.inference(RoutingSettings.DEFAULT, Flags.AUTO);

  private static Architecture tiny(Map<String, Boolean> biases) {
    var json =
        Jsonl.JSON
            .createObjectNode()
            .put("vocab_size", 11)
            .put("hidden_size", 8)
            .put("intermediate_size", 6)
            .put("num_hidden_layers", 1)
            .put("num_attention_heads", 2)
            .put("num_key_value_heads", 1);
    biases.forEach(json::put);
    return LlamaConfig.parse(json, "test");
  }

  @Test
  void projectionsKnowTheirPlaceAndShape() {
    assertThat(Projection.NAMES)
        .containsExactly(
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj");
    assertThat(Projection.K.path(3)).isEqualTo("model.layers.3.self_attn.k_proj");
    assertThat(Projection.DOWN.path(0)).isEqualTo("model.layers.0.mlp.down_proj");
    var tiny = tiny(Map.of());
    assertThat(tiny.shape(Projection.Q)).containsExactly(8, 8);
    assertThat(tiny.shape(Projection.V)).containsExactly(4, 8);
    assertThat(tiny.shape(Projection.UP)).containsExactly(6, 8);
    assertThat(tiny.shape(Projection.DOWN)).containsExactly(8, 6);
  }

  @Test
  void aFamilySaysWhichProjectionsAreBiased() {
    assertThat(tiny(Map.of()).biased()).isEmpty();
    assertThat(tiny(Map.of("attention_bias", true)).biased())
        .containsExactlyInAnyOrder(Projection.Q, Projection.K, Projection.V, Projection.O);
    assertThat(tiny(Map.of("mlp_bias", true)).biased())
        .containsExactlyInAnyOrder(Projection.GATE, Projection.UP, Projection.DOWN);
  }

  /** As in Qwen2: q, k and v alone; the biases are asked for, and added. */
  @Test
  void biasesOfSomeProjections() {
    var plain = tiny(Map.of());
    var biased =
        new Architecture(
            plain.vocabSize(),
            plain.hiddenSize(),
            plain.intermediateSize(),
            plain.numHiddenLayers(),
            plain.numAttentionHeads(),
            plain.numKeyValueHeads(),
            plain.headDim(),
            plain.maxPositionEmbeddings(),
            plain.rmsNormEps(),
            Set.of(Projection.Q, Projection.K, Projection.V),
            plain.tieWordEmbeddings(),
            plain.rope(),
            plain.raw());
    var asked = new ArrayList<String>();
    try (var manager = Devices.newManager(ai.djl.Device.cpu())) {
      LlamaFactory.Weights ones =
          (name, shape) -> {
            asked.add(name);
            return Ops.zeros(manager, Dtype.F32, shape).add(1);
          };
      var llama = build(biased, manager, ones);
      assertThat(asked.stream().filter(name -> name.endsWith(".bias")))
          .isEqualTo(
              List.of(
                  "model.layers.0.self_attn.q_proj.bias",
                  "model.layers.0.self_attn.k_proj.bias",
                  "model.layers.0.self_attn.v_proj.bias"));
      var layer = llama.layers().getFirst();
      NDArray x = manager.ones(Ops.shape(1, 8));
      assertThat(layer.projection(Projection.K).forward(x, CONTEXT).y().toFloatArray())
          .containsOnly(9);
      assertThat(layer.projection(Projection.O).forward(x, CONTEXT).y().toFloatArray())
          .containsOnly(8);
    }
  }

  private static Llama build(
      Architecture architecture, NDManager manager, LlamaFactory.Weights weights) {
    return LlamaFactory.build(
        architecture,
        manager,
        Dtype.F32,
        weights,
        (layer, projection) -> null,
        Backends.of(manager, Dtype.F32),
        0);
  }
}
