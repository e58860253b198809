package org.meteora.router;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import ai.djl.Device;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.Fixtures;
import org.meteora.UserException;
import org.meteora.checkpoint.LoadedModel;
import org.meteora.lora.LoraAdapter;
import org.meteora.model.RandomLlama;
import org.meteora.moe.Flags;
import org.meteora.nn.Projection;
import org.meteora.safetensors.SafetensorsWriter;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/** What trained routers read: what was written, and nothing that does not fit. */
class RouterFilesTest {
  private Path tiny;

  @TempDir Path folder;
  private Path adapters;

  @BeforeEach
  void copyAdapters() throws IOException {
    tiny = Fixtures.tinyLlama();
    adapters = folder.resolve("adapters");
    for (var from : LoraAdapter.list(tiny.resolve("adapters"))) {
      var to = Files.createDirectories(adapters.resolve(from.getFileName()));
      for (var name : List.of("adapter_config.json", "adapter_model.safetensors")) {
        Files.copy(from.resolve(name), to.resolve(name));
      }
    }
  }

  private LoadedModel load(String router, Path checkpoint) {
    return LoadedModel.load(
        new LoadedModel.Spec(
            tiny.resolve("base"),
            "meteora",
            Optional.ofNullable(checkpoint),
            Optional.of(adapters),
            Optional.of(2),
            Optional.of(1.0),
            "cpu",
            Optional.of("f32"),
            Flags.AUTO,
            router));
  }

  /** Vectors for all adapters, as training writes them. */
  private void writeVectors(NDManager manager) {
    for (var path : LoraAdapter.list(adapters)) {
      var vectors = new LinkedHashMap<String, NDArray>();
      try (var adapter = LoraAdapter.open(path)) {
        for (int layer = 0; layer < 2; layer++) {
          for (var module : Projection.values()) {
            adapter
                .rankOn(module.path(layer))
                .ifPresent(new Vector(manager, adapter, module.path(layer), vectors)::put);
          }
        }
      }
      PhatgooseFile.write(path, path, vectors);
    }
  }

  private record Vector(
      NDManager manager, LoraAdapter adapter, String module, Map<String, NDArray> to) {
    void put(int rank) {
      long in = adapter.weights().requireInfo(adapter.keyA(module)).shape().get(1);
      to.put(module, RandomLlama.normal(manager, Dtype.F32, 1, 1, in));
    }
  }

  private static Path anyAdapter(Path adapters) {
    return LoraAdapter.list(adapters).getFirst();
  }

  @Test
  void phatgooseReadsTheVectorsBesideTheAdapters() {
    try (var manager = Devices.newManager(Device.cpu())) {
      assertThatThrownBy(() -> load("phatgoose", null))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("has no vectors")
          .hasMessageContaining("train-lora --phatgoose");
      writeVectors(manager);
      try (var model = load("phatgoose", null)) {
        var described = model.describe();
        assertThat(described).containsEntry("router", "phatgoose");
        assertThat(((Map<?, ?>) described.get("sha256")).keySet().toString())
            .contains(PhatgooseFile.NAME);
        var prompts = Fixtures.prompts();
        assertThat(RoutersTest.logits(model.llama(), model.generator().context(), prompts, 1000))
            .doesNotContain(Float.NaN);
      }
      // it works beside the adapters for PEFT, which reads two files
      LoraAdapter.open(anyAdapter(adapters)).close();
    }
  }

  @Test
  void vectorsThatDoNotFitAreRefused() throws IOException {
    try (var manager = Devices.newManager(Device.cpu())) {
      writeVectors(manager);
      var adapter = anyAdapter(adapters);
      var file = adapter.resolve(PhatgooseFile.NAME);
      Files.delete(file);
      var v = RandomLlama.normal(manager, Dtype.F32, 1, 5);
      PhatgooseFile.write(adapter, adapter, Map.of("model.layers.0.self_attn.q_proj", v));
      assertThatThrownBy(() -> load("phatgoose", null))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("is F32 [5], expected F32 [");
      PhatgooseFile.write(adapter, adapter, Map.of("model.layers.9.self_attn.q_proj", v));
      assertThatThrownBy(() -> load("phatgoose", null))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("there is no tensor");
      writeVectors(manager);
      var weights = adapter.resolve("adapter_model.safetensors");
      var bytes = Files.readAllBytes(weights);
      bytes[bytes.length - 1] ^= 1;
      Files.write(weights, bytes);
      assertThatThrownBy(() -> load("phatgoose", null))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("was trained with another adapter_model.safetensors");
    }
  }

  private Map<String, NDArray> gates(NDManager manager, int adapters, long hidden, int layers) {
    var result = new LinkedHashMap<String, NDArray>();
    for (int layer = 0; layer < layers; layer++) {
      result.put(
          LoraFlowFile.key(layer, "weight"),
          RandomLlama.normal(manager, Dtype.F32, 0.5, adapters, hidden));
      result.put(
          LoraFlowFile.key(layer, "bias"), RandomLlama.normal(manager, Dtype.F32, 0.5, adapters));
    }
    return result;
  }

  @Test
  void loraFlowReadsWhatTrainWroteInAnyOrderOfAdapters() {
    try (var manager = Devices.newManager(Device.cpu())) {
      assertThatThrownBy(() -> load("lora-flow", null))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("--meteora-ckpt-path");
      var names = LoraAdapter.list(adapters).stream().map(p -> p.getFileName().toString()).toList();
      int n = names.size();
      var gates = gates(manager, n, 64, 2);
      var prompts = Fixtures.prompts();
      LoraFlowFile.write(folder, gates, names);
      float[] expected;
      try (var model = load("lora-flow", folder)) {
        expected = RoutersTest.logits(model.llama(), model.generator().context(), prompts, 1000);
        assertThat(((Map<?, ?>) model.describe().get("sha256")).keySet().toString())
            .contains(LoraFlowFile.NAME);
      }
      // the rows in another order, and said so
      var order = new long[n];
      for (int i = 0; i < n; i++) {
        order[i] = n - 1 - i;
      }
      var turned = new LinkedHashMap<String, NDArray>();
      gates.forEach(
          (key, value) -> turned.put(key, Ops.indexSelect(value, 0, manager.create(order))));
      LoraFlowFile.write(folder, turned, names.reversed());
      try (var model = load("lora-flow", folder.resolve(LoraFlowFile.NAME))) {
        assertThat(
                RoutersTest.worst(
                    RoutersTest.logits(model.llama(), model.generator().context(), prompts, 1000),
                    expected))
            .isLessThan(1e-5);
      }
      LoraFlowFile.write(folder, gates(manager, n - 1, 64, 2), names.subList(1, n));
      assertThatThrownBy(() -> load("lora-flow", folder))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("is for the adapters " + names.get(1));
      LoraFlowFile.write(folder, gates(manager, n, 63, 2), names);
      assertThatThrownBy(() -> load("lora-flow", folder))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("expected F32 [" + n + ", 64]");
      LoraFlowFile.write(folder, gates(manager, n, 64, 3), names);
      assertThatThrownBy(() -> load("lora-flow", folder))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("layers.2.lora_flow");
      SafetensorsWriter.write(folder.resolve(LoraFlowFile.NAME), gates, Map.of("adapters", "[1"));
      assertThatThrownBy(() -> load("lora-flow", folder))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("do not name the adapters");
    }
  }
}
