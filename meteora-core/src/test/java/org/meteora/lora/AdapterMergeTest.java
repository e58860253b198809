package org.meteora.lora;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalInt;
import java.util.Set;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.meteora.Fixtures;
import org.meteora.UserException;
import org.meteora.checkpoint.LoadedModel;
import org.meteora.checkpoint.MergedModel;
import org.meteora.io.Jsonl;
import org.meteora.lora.AdapterMerge.Method;
import org.meteora.moe.Flags;
import org.meteora.router.Routers;
import org.meteora.safetensors.SafetensorsFile;
import org.meteora.safetensors.SafetensorsFolder;
import org.meteora.safetensors.SafetensorsWriter;
import org.meteora.tensor.Devices;

/** Against PEFT's add_weighted_adapter. */
class AdapterMergeTest {
  private static final Path TINY =
      Path.of(System.getProperty("meteora.root", "..")).resolve("configs/tiny");

  @TempDir Path folder;

  private static AdapterMerge.Merged merge(AdapterMerge merge, Path adapters, NDManager manager) {
    var opened = new ArrayList<LoraAdapter>();
    try {
      LoraAdapter.list(adapters).forEach(each -> opened.add(LoraAdapter.open(each)));
      return merge.run(opened, manager);
    } finally {
      opened.forEach(LoraAdapter::close);
    }
  }

  private static float[] delta(AdapterMerge.Merged merged, String module) {
    try (var product = merged.b().get(module).matMul(merged.a().get(module))) {
      return product.toFloatArray();
    }
  }

  private static void close(float[] actual, float[] expected, double tolerance) {
    assertThat(actual).hasSameSizeAs(expected);
    for (int i = 0; i < actual.length; i++) {
      assertThat((double) actual[i]).isCloseTo(expected[i], within(tolerance));
    }
  }

  /** All eight, what dare drops included (scripts/make-merge-fixture.py). */
  @ParameterizedTest
  @EnumSource(Method.class)
  void updatesArePefts(Method method) throws Exception {
    updatesArePefts(method, 7);
  }

  /** PyTorch's generator begins with the lower 32 bits of a seed of 64. */
  @Test
  void seedsAreOf64Bits() throws Exception {
    updatesArePefts(Method.DARE_LINEAR, 7 + (5L << 32));
    updatesArePefts(Method.DARE_LINEAR, 7 - (1L << 32));
  }

  private static void updatesArePefts(Method method, long seed) throws Exception {
    var merge =
        new AdapterMerge(method, List.of(0.4, 0.3, 0.2, -0.1), 0.6, OptionalInt.of(3), seed);
    var file = Path.of(AdapterMergeTest.class.getResource("/merge/peft.safetensors").toURI());
    try (var manager = Devices.newManager(ai.djl.Device.cpu());
        var reference = SafetensorsFile.open(file)) {
      var merged = merge(merge, TINY.resolve("adapters"), manager);
      var expected =
          reference.read(manager, method.name().toLowerCase(java.util.Locale.ROOT)).toFloatArray();
      close(delta(merged, "model.layers.1.self_attn.k_proj"), expected, 1e-5);
      assertThat(merged.config().rank())
          .isEqualTo(method == Method.CAT ? 16 : method.choosesRank() ? 3 : 4);
    }
  }

  /** The tiny model's updates, logits and continuations. */
  @ParameterizedTest
  @ValueSource(strings = {"linear", "cat", "svd", "ties", "ties_svd", "magnitude_prune"})
  void logitsAndContinuationsArePefts(String name) {
    var tiny = Fixtures.tinyLlama();
    var method = Method.valueOf(name.toUpperCase(java.util.Locale.ROOT));
    var merge = new AdapterMerge(method, List.of(0.4, 0.3, 0.2, 0.1), 0.4, OptionalInt.of(8), 0);
    try (var manager = Devices.newManager(ai.djl.Device.cpu());
        var reference = SafetensorsFile.open(tiny.resolve("routers.safetensors"))) {
      var merged = merge(merge, tiny.resolve("adapters"), manager);
      close(
          delta(merged, "model.layers.1.mlp.gate_proj"),
          reference.read(manager, "merge." + name + ".layer1.gate_proj.delta").toFloatArray(),
          1e-5);
      merged.write(folder.resolve("adapters/merged"), "tiny");
      MergedModel.write(tiny.resolve("base"), merged, folder.resolve("whole"));
    }
    var expected = Jsonl.readFile(tiny.resolve("routers.json")).get("merge." + name + ".generated");
    for (var spec :
        List.of(
            spec(tiny.resolve("base"), "merged", Optional.of(folder.resolve("adapters"))),
            spec(folder.resolve("whole"), "base", Optional.empty()))) {
      try (var model = LoadedModel.load(spec)) {
        var generated =
            model
                .generator()
                .generate(
                    Fixtures.prompts(),
                    model
                        .generationConfig()
                        .withGreedy()
                        .withMaxNewTokens(24)
                        .withNoRepeatNgramSize(3));
        for (int row = 0; row < generated.size(); row++) {
          assertThat(generated.get(row)).isEqualTo(Fixtures.ints(expected.get(row)));
        }
      }
    }
  }

  private static LoadedModel.Spec spec(Path base, String model, Optional<Path> adapters) {
    return new LoadedModel.Spec(
        base,
        model,
        Optional.empty(),
        adapters,
        Optional.empty(),
        Optional.empty(),
        "cpu",
        Optional.of("f32"),
        Flags.AUTO,
        Routers.GATE);
  }

  /** Two adapters: ranks 2 and 3 on q, only the second on v, which is then in the second's rank. */
  private Path unequal(NDManager manager) {
    for (int i = 0; i < 2; i++) {
      int rank = 2 + i;
      var tensors = new LinkedHashMap<String, NDArray>();
      for (var module : i == 0 ? List.of("q_proj") : List.of("q_proj", "v_proj")) {
        var path = "base_model.model.model.layers.0.self_attn." + module;
        tensors.put(
            path + ".lora_A.weight", manager.randomNormal(new ai.djl.ndarray.types.Shape(rank, 8)));
        tensors.put(
            path + ".lora_B.weight", manager.randomNormal(new ai.djl.ndarray.types.Shape(6, rank)));
      }
      var into = folder.resolve("unequal/adapter" + i);
      SafetensorsWriter.write(into.resolve("adapter_model.safetensors"), tensors, Map.of());
      LoraConfig.of(
              rank, 4, 0, i == 0 ? Set.of("q_proj") : Set.of("q_proj", "v_proj"), false, Set.of())
          .write(into, "");
    }
    return folder.resolve("unequal");
  }

  @Test
  void ranksMayDifferWhereTheMethodAllowsIt() {
    try (var manager = Devices.newManager(ai.djl.Device.cpu())) {
      var adapters = unequal(manager);
      var weights = List.of(0.7, 0.3);
      var q = "model.layers.0.self_attn.q_proj";
      var v = "model.layers.0.self_attn.v_proj";
      var cat =
          merge(
              new AdapterMerge(Method.CAT, weights, 1, OptionalInt.empty(), 0), adapters, manager);
      assertThat(cat.config().rankOf(q)).hasValue(5);
      assertThat(cat.config().rankOf(v)).hasValue(3);
      assertThat(cat.config().scaleOf(v, 3)).isEqualTo(1);
      // rank 5 holds the sum exactly; what the svd leaves out at rank 3 is the smallest part
      var whole =
          merge(new AdapterMerge(Method.SVD, weights, 1, OptionalInt.of(5), 0), adapters, manager);
      close(delta(whole, q), delta(cat, q), 1e-5);
      var best =
          merge(
              new AdapterMerge(Method.SVD, weights, 1, OptionalInt.empty(), 0), adapters, manager);
      assertThat(best.config().rankOf(q)).hasValue(3);
      close(delta(best, v), delta(cat, v), 1e-5);
      cat.write(folder.resolve("merged"), "");
      try (var read = LoraAdapter.open(folder.resolve("merged"))) {
        assertThat(read.rankOn(v)).contains(3);
        assertThat(read.config().scaleOf(v, 3)).isEqualTo(1);
      }
      assertThatThrownBy(
              () ->
                  merge(
                      new AdapterMerge(Method.TIES, weights, 0.5, OptionalInt.empty(), 0),
                      adapters,
                      manager))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("adapter0 2, adapter1 3");
    }
  }

  /** A base of bfloat16 in shards becomes the same shards with the sum rounded once. */
  @Test
  void theBaseKeepsItsShardsAndDtype() throws Exception {
    var base = folder.resolve("base");
    try (var manager = Devices.newManager(ai.djl.Device.cpu());
        var weights = SafetensorsFolder.open(TINY.resolve("base"))) {
      var shards =
          List.of(new LinkedHashMap<String, NDArray>(), new LinkedHashMap<String, NDArray>());
      var index = Jsonl.JSON.createObjectNode();
      var map = index.putObject("weight_map");
      for (var name : weights.names()) {
        int shard = name.contains("layers.1") ? 1 : 0;
        shards.get(shard).put(name, weights.files().getFirst().read(manager, name));
        map.put(name, "model-0000" + (shard + 1) + "-of-00002.safetensors");
      }
      for (int i = 0; i < 2; i++) {
        SafetensorsWriter.write(
            base.resolve("model-0000" + (i + 1) + "-of-00002.safetensors"),
            shards.get(i),
            Map.of("format", "pt"));
      }
      Files.writeString(base.resolve("model.safetensors.index.json"), index.toString());
      for (var name : List.of("config.json", "tokenizer.json", "generation_config.json")) {
        Files.copy(TINY.resolve("base").resolve(name), base.resolve(name));
      }
      Files.writeString(base.resolve("pytorch_model.bin"), "old weights");
      var merged =
          merge(
              new AdapterMerge(Method.CAT, List.of(1.0, 1.0, 1.0, 1.0), 1, OptionalInt.empty(), 0),
              TINY.resolve("adapters"),
              manager);
      var out = folder.resolve("out");
      MergedModel.write(base, merged, out);
      try (var files = Files.list(out)) {
        assertThat(files.map(each -> each.getFileName().toString()))
            .containsExactlyInAnyOrder(
                "config.json",
                "generation_config.json",
                "tokenizer.json",
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors");
      }
      try (var written = SafetensorsFolder.open(out)) {
        var module = "model.layers.1.mlp.up_proj";
        assertThat(written.info(module + ".weight").orElseThrow().dtype())
            .isEqualTo(weights.info(module + ".weight").orElseThrow().dtype());
        assertThat(written.metadata()).containsEntry("format", "pt");
        var after = values(written.files().get(1), manager, module + ".weight");
        var before = values(weights.files().getFirst(), manager, module + ".weight");
        var update = delta(merged, module);
        for (int i = 0; i < update.length; i++) {
          assertThat((double) after[i])
              .isCloseTo(
                  before[i] + update[i], within(Math.abs(before[i] + update[i]) / 256 + 1e-9));
        }
        assertThat(values(written.files().getFirst(), manager, "model.norm.weight"))
            .isEqualTo(values(weights.files().getFirst(), manager, "model.norm.weight"));
      }
    }
  }

  private static float[] values(SafetensorsFile file, NDManager manager, String name) {
    return org.meteora.tensor.Ops.cast(file.read(manager, name), org.meteora.tensor.Dtype.F32)
        .toFloatArray();
  }
}
